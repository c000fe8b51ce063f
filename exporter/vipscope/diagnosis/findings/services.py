"""What is wrong with Services: what this node's kernel gets wrong, and who routes to nobody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from vipscope.diagnosis.findings.finding import Finding, Severity, count, port, span
from vipscope.snapshot import Cluster, Disagreement, Drift

_RESTART: Final = (
    "look for what took it away, and restart kube-proxy on this node, which writes it anew: a "
    "firewall's reload or a flush of the tables does this"
)
_CUTS_OFF: Final[Mapping[str, str]] = {
    "empty": "the kernel holds none of kube-proxy's ways in: no Service works",
    "prerouting": "packets from pods and from outside never reach kube-proxy's rules",
    "output": "packets from the node itself never reach kube-proxy's rules",
    "node_ports": "packets for node ports never reach kube-proxy's rules",
}
"""The keys of `Drift.faults`, the worst first."""

_PROXY_LAGS: Final = (
    "look at kube-proxy's log on this node: it hangs, fails to write, or something else changed "
    "its rules"
)


def faults(record: Drift) -> Iterator[Finding]:
    """What keeps packets from all Services of this node at once."""
    for fault, title in _CUTS_OFF.items():
        if fault in record.faults:
            cut_off = count(record.services["missing"], "Service port")
            since = span(record.faults[fault])
            yield Finding(
                Severity.BROKEN,
                f"drift-{fault.replace('_', '-')}",
                title,
                (f"{cut_off} cut off for {since}, mode {record.mode} ({record.backend})",),
                _RESTART,
            )


def drift(record: Drift) -> Iterator[Finding]:
    """Which Services this node's kernel gets wrong, by name."""
    named: dict[str, list[Disagreement]] = defaultdict(list)
    for each in record.named:
        named[each.kind].append(each)
    if "empty" not in record.faults:  # else each Service is missing, and each endpoint
        yield from _missing(record, named["missing"])
        yield from _endpoints(
            record.endpoints["missing"],
            named["missing_endpoints"],
            "drift-missing-endpoints",
            "that the API has and the kernel does not: fewer share the load",
        )
    yield from _endpoints(
        record.endpoints["stale"],
        named["stale_endpoints"],
        "drift-stale-endpoints",
        "that the kernel still sends connections to although the API has dropped them",
    )
    yield from _orphaned(record.services["orphaned"], named["orphaned"])
    yield from _local(record)


def _missing(record: Drift, named: Iterable[Disagreement]) -> Iterator[Finding]:
    evidence = _by_port(named)
    # While a fault cuts off all Services, all of them are counted as missing.
    total = len(evidence) if record.faults else record.services["missing"]
    if total:
        yield Finding(
            Severity.BROKEN,
            "drift-missing-services",
            f"{count(total, 'Service port')} that the API has and the kernel does not",
            evidence,
            _PROXY_LAGS,
        )


def _endpoints(
    total: int, named: Iterable[Disagreement], identity: str, what: str
) -> Iterator[Finding]:
    if total:
        yield Finding(
            Severity.BROKEN, identity, f"{count(total, 'endpoint')} {what}", _by_port(named),
            _PROXY_LAGS,
        )  # fmt: skip


def _orphaned(total: int, named: Iterable[Disagreement]) -> Iterator[Finding]:
    if total:
        yield Finding(
            Severity.WARNING,
            "drift-orphaned-services",
            f"{count(total, 'way')} in to Services in the kernel that the API does not want",
            _by_port(named),
            f"{_PROXY_LAGS}; leftovers of an earlier kube-proxy go when the node boots anew",
        )


def _by_port(named: Iterable[Disagreement]) -> tuple[str, ...]:
    """A line each; both address families of a port, which have one name, are one."""
    ages: dict[str, float] = {}
    endpoints: dict[str, list[str]] = defaultdict(list)
    for each in named:
        name = port(*each[1:4]) if each.service else each.held
        ages[name] = max(ages.get(name, 0.0), each.age)
        endpoints[name] += each.endpoints
    return tuple(
        f"{name}: {''.join(f'{end}, ' for end in endpoints[name])}for {span(age)}"
        for name, age in ages.items()
    )


def _local(record: Drift) -> Iterator[Finding]:
    """A warning: it is what the Service's owner asked for, on all nodes but some."""
    found = [each for each in record.unroutable if each.reason == "no_local_endpoints"]
    total = record.unroutable_services["no_local_endpoints"]
    if total:
        yield Finding(
            Severity.WARNING,
            "unroutable-no-local-endpoints",
            f"{count(total, 'Service')} with a Local traffic policy and no endpoint on this node",
            tuple(f"{port(*each[:3])}: this node drops its connections" for each in found),
            "run a Pod of it on each node that has clients (a DaemonSet), or set the policy to "
            "Cluster; where nobody calls it from here, all is well",
        )


class _Words(NamedTuple):
    title: str
    advice: str


_UNROUTABLE: Final[Mapping[str, _Words]] = {
    "selector_matches_no_pods": _Words(
        "whose selector no Pod matches",
        "compare the Service's selector with the labels of the Pods that should serve it; if they "
        "were never started, look at their Deployment",
    ),
    "pods_not_ready": _Words(
        "of which no Pod is ready",
        "look at the Pods' readiness probes and events: `kubectl describe pod`",
    ),
    "port_name_mismatch": _Words(
        "whose target port no Pod has",
        "give a container's port that name, or the Service's targetPort a name or number that the "
        "containers have",
    ),
    "no_endpoint_slices": _Words(
        "without a selector, for which nobody has made an EndpointSlice",
        "make its EndpointSlice, start the controller that should, or give it a selector",
    ),
    "load_balancer_pending": _Words(
        "still waiting for a load balancer",
        "look at the Service's events and at the cloud's or MetalLB's controller; without one, use "
        "type NodePort",
    ),
    "external_name_unresolvable": _Words(
        "whose external name does not resolve",
        "mend the Service's externalName or the DNS zone",
    ),
}


def unroutable(record: Cluster) -> Iterator[Finding]:
    """Service ports that route to nobody, of each reason one finding."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for (namespace, service, name, reason), detail in sorted(record.unroutable.items()):
        found[reason][port(namespace, service, name)] = detail
    for reason, words in _UNROUTABLE.items():
        if ports := found[reason]:
            yield Finding(
                Severity.BROKEN,
                f"unroutable-{reason.replace('_', '-')}",
                f"{count(len(ports), 'Service port')} {words.title}",
                tuple(f"{name}: {detail}" for name, detail in ports.items()),
                words.advice,
            )
