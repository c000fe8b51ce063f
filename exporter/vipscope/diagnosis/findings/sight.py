"""What could not be seen, or not lately: the collectors, and the age of what they tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from vipscope.diagnosis.findings.finding import Finding, Severity, span
from vipscope.snapshot import Cluster, Drift, Ipvs, Outcome, Ruleset, Snapshot

COUNTED_AGE: Final = 300.0
"""Seconds. What is counted is confirmed every few seconds; even past the CPU budget the largest
ruleset is read again within minutes."""
HEARD_AGE: Final = 300.0
"""Seconds. An API server sends each watch a bookmark about once a minute."""

_NEEDS: Final[Mapping[str, str]] = {
    "nftables": "NET_ADMIN as uid 0 in the node's network namespace",
    "xtables": "NET_ADMIN as uid 0 in the node's network namespace",
    "ipvs": "uid 0 in the node's network namespace",
    "conntrack": "to read /proc/sys/net/netfilter",
    "pressure": "to read /proc",
    "drift": "what nftables, xtables and ipvs need, and of the API list and watch on Services, "
    "EndpointSlices and its own Node",
    "cluster": "of the API list and watch on Services, EndpointSlices and Pods",
}
"""Collector -> the privilege without which it is denied."""
_FROM_THE_API: Final = ("drift", "cluster")


def reads(snapshot: Snapshot) -> Iterator[Finding]:
    """Collectors that could not read, and what is unknown for it."""
    enabled = {
        name: reading
        for name, reading in sorted(snapshot.readings.items())
        if reading.outcome is not Outcome.DISABLED
    }
    if not any(reading.outcome is Outcome.OK for reading in enabled.values()):
        yield Finding(
            Severity.BROKEN,
            "nothing-read",
            "nothing could be read, so nothing is known",
            tuple(f"{name}: {each.outcome}: {each.detail}" for name, each in enabled.items()),
            "the kernel is read as root with NET_ADMIN in the node's network namespace, the API "
            "with a service account or --kubeconfig",
        )
        return
    for name, reading in enabled.items():
        if reading.outcome in (Outcome.DENIED, Outcome.TIMEOUT, Outcome.FAILED):
            denied = reading.outcome is Outcome.DENIED
            yield Finding(
                Severity.WARNING,
                f"collector-{reading.outcome}",
                f"collector {name}: {_WORDS[reading.outcome]}: what it would tell is not known",
                (reading.detail,),
                f"it needs {_NEEDS[name]}"
                if denied and name in _NEEDS
                else "--log.level=debug tells more",
            )
        elif reading.outcome is Outcome.ABSENT and name in _FROM_THE_API:
            yield Finding(
                Severity.INFO,
                "collector-absent",
                f"collector {name} has nothing to read",
                (reading.detail,),
                _ABSENT[name],
            )


_WORDS: Final[Mapping[Outcome, str]] = {
    Outcome.DENIED: "denied",
    Outcome.TIMEOUT: "no answer in time",
    Outcome.FAILED: "failed",
}
_ABSENT: Final[Mapping[str, str]] = {
    "drift": "without it the kernel is not compared with what the API wants",
    "cluster": "without it no Service is looked at for whether it routes to anybody",
}


def ages(snapshot: Snapshot, now: float) -> Iterator[Finding]:
    """What is older than it should be, at Unix time `now`."""
    silent: dict[str, float] = {}
    for name, reading in sorted(snapshot.readings.items()):
        match reading.record:
            case Ruleset() | Ipvs() as record if now - record.counted_at > COUNTED_AGE:
                yield Finding(
                    Severity.WARNING,
                    "snapshot-old",
                    f"collector {name} tells what the kernel held {span(now - record.counted_at)} "
                    "ago",
                    (),
                    "raise --cpu-budget, or find out what keeps changing the ruleset",
                )
            case Cluster() | Drift() as record:
                for resource, watch in record.watches.items():
                    age = now - watch.last_event
                    if age > HEARD_AGE:
                        silent[resource] = max(age, silent.get(resource, 0.0))
    if silent:
        yield Finding(
            Severity.WARNING,
            "watch-stale",
            "the API server is silent: what is told of Services is old",
            tuple(f"{resource}: since {span(age)}" for resource, age in sorted(silent.items())),
            "look whether the API server is up and can be reached from here",
        )
