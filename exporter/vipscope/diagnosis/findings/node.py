"""What is wrong with a node: kube-proxy, its program as a whole, IPVS, connection tracking."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from vipscope.dataplane.depth import depths_by_family, nearest_rank
from vipscope.dataplane.mode import proxy_modes
from vipscope.dataplane.naming import KUBE_PROXY
from vipscope.diagnosis.findings.finding import Finding, Severity, count, names, span
from vipscope.snapshot import Conntrack, Ipvs, KubeProxy, Pressure, Record, Ruleset, Snapshot

R = TypeVar("R", bound=Record)

SYNC_PENDING: Final = 30.0
"""Seconds. kube-proxy gathers changes for a second, and writing a large ruleset takes several."""
SYNC_HUNG: Final = 300.0
"""Seconds. Syncs of a quarter of an hour are known, and all the while connections go astray."""
INTENDED_FACTOR: Final = 1.5
INTENDED_MARGIN: Final = 100
"""By how much kube-proxy's rules may exceed what it means to have: in large clusters it removes the
chains of gone endpoints late."""
DEEP: Final = 5_000
"""Rules that a packet for a Service of middle depth is checked against: from 10,000 Services on."""
WRITER_SHARE: Final = 0.1
"""Of all transactions, from which a program counts as one that rewrites the ruleset. kube-proxy's
neighbours write some rules once for each Pod; that is less."""
CONNTRACK_FILLED: Final = 0.8
"""Of the limit: the rest is used up by a burst of short connections within seconds."""
ESTIMATED_SERVERS: Final = 10_000
"""Virtual servers whose rates take a softirq tens of milliseconds each two seconds: 200 ms were
seen at 50,000."""
REUSE_IS_CHEAP: Final = (5, 9)
"""The first kernel that lets go of an old connection without losing the new one's first packet."""

_REPLACEMENTS: Final = frozenset(("antrea", "cilium", "kube-router", "ovn-kubernetes"))
"""Owners of chains that may do kube-proxy's work in its place."""
_CLEANING: Final = (
    "drain the node and boot it anew; `kube-proxy --cleanup` removes the rules of all modes, and "
    "no Service works there until kube-proxy has started again"
)


def kube_proxy(snapshot: Snapshot) -> Iterator[Finding]:
    """Whether there is a kube-proxy that does its work, and whether its program is there."""
    said = _one(snapshot, KubeProxy)
    modes = proxy_modes(snapshot, snapshot.readings.keys())
    held = [mode for mode, present in modes.items() if present and mode != "none"]
    yield from _programs(said, modes, held, snapshot)
    if said is None:
        return
    if said.healthy is False and not (said.mode is None and modes.get("none")):
        answers = said.mode is not None or said.last_sync is not None
        yield Finding(
            Severity.BROKEN,
            "kube-proxy-down",
            "kube-proxy says that it is not healthy"
            if answers
            else "kube-proxy does not answer on this node",
            (f"what it has programmed ({names(held)}) stays, and ages",) if held else (),
            "look at its Pod or unit and its log; if it listens elsewhere, see "
            "--kube-proxy.health-url and --kube-proxy.metrics-url",
        )
    yield from _sync(said)


def _programs(
    said: KubeProxy | None, modes: Mapping[str, bool], held: Sequence[str], snapshot: Snapshot
) -> Iterator[Finding]:
    own = said.mode if said else None
    if own is not None and modes.get(own) is False:
        yield Finding(
            Severity.BROKEN,
            "mode-not-programmed",
            f"kube-proxy says mode {own}, and the kernel holds nothing of that",
            (f"the kernel holds mode {names(held)}",) if held else (),
            "look at kube-proxy's log on this node: it fails to write, or writes elsewhere, such "
            "as into another network namespace",
        )
    elif modes.get("none"):
        yield _nobody(said, snapshot)
    if len(held) > 1:
        yield Finding(
            Severity.WARNING,
            "mode-leftovers",
            f"the kernel holds programs of modes {names(held)}",
            (f"kube-proxy says that its mode is {own}",) if own else (),
            "what kube-proxy no longer updates may take packets again as soon as something makes "
            f"its chain anew: {_CLEANING}",
        )
    if modes.get("ipvs") and own in (None, "ipvs"):
        yield Finding(
            Severity.INFO,
            "deprecated-mode",
            "mode ipvs is deprecated since Kubernetes 1.35",
            (),
            "plan for mode nftables",
        )


def _nobody(said: KubeProxy | None, snapshot: Snapshot) -> Finding:
    owners = {owner for each in _rulesets(snapshot) for _, _, owner, _ in each.counts}
    others = owners & _REPLACEMENTS
    if others and not (said and said.healthy):
        return Finding(
            Severity.INFO,
            "nobody-programs",
            f"kube-proxy programs nothing here; {names(others)} may do its work",
            (),
            "if so, switch off the collectors kubeproxy and drift: --no-collector.kubeproxy",
        )
    health = "though kube-proxy is healthy" if said and said.healthy else "no kube-proxy answers"
    return Finding(
        Severity.BROKEN,
        "nobody-programs",
        "nobody has programmed Services on this node, in any mode",
        (health,) if said else (),
        "start kube-proxy; where another proxy does its work without iptables, nftables or IPVS, "
        "look there",
    )


def _sync(said: KubeProxy) -> Iterator[Finding]:
    pending = said.sync_pending_seconds
    if pending is not None and pending > SYNC_PENDING:
        failures = int(said.restore_failures or 0)
        yield Finding(
            Severity.BROKEN if pending > SYNC_HUNG else Severity.WARNING,
            "kube-proxy-sync-pending",
            f"kube-proxy has not written a change of {span(pending)} ago to the kernel",
            (f"{count(failures, 'failed write')} since it started",) if failures else (),
            "look at its log; it may wait for the xtables lock, fail to write, or have no CPU",
        )
    elif said.restore_failures:
        yield Finding(
            Severity.INFO,
            "kube-proxy-restore-failures",
            f"{count(int(said.restore_failures), 'write')} of rules failed since kube-proxy "
            "started",
            (),
            "look at its log for the rule that the kernel refused; if the number grows, changes do "
            "not reach the kernel",
        )


# --- rules ----------------------------------------------------------------------------------------


def rules(snapshot: Snapshot) -> Iterator[Finding]:
    """How many they are, who writes them, who waits to."""
    yield from _beyond_intent(_one(snapshot, KubeProxy), _rulesets(snapshot))
    yield from _deep(snapshot)
    for ruleset in _rulesets(snapshot):
        yield from _writers(ruleset)
    pressure = _one(snapshot, Pressure)
    if pressure is not None and pressure.xtables_lock_waiters:
        yield Finding(
            Severity.WARNING,
            "xtables-lock-contention",
            f"{count(pressure.xtables_lock_waiters, 'process')} waiting for the xtables lock",
            (),
            "`lslocks` names who holds it; each program that lists or writes iptables does, for as "
            "long as the ruleset is large",
        )


def _beyond_intent(said: KubeProxy | None, rulesets: Iterable[Ruleset]) -> Iterator[Finding]:
    held = Counter[tuple[str, str]]()
    for ruleset in rulesets:
        for (family, table, owner, _), counted in ruleset.counts.items():
            if owner == KUBE_PROXY:
                held[family, table] += counted.rules
    intended = {} if said is None else said.intended_rules
    evidence = tuple(
        f"{family} {table}: {held[family, table]} rules held, {wanted:.0f} intended"
        for (family, table), wanted in sorted(intended.items())
        if held[family, table] > INTENDED_FACTOR * wanted + INTENDED_MARGIN
    )
    if evidence:
        yield Finding(
            Severity.WARNING,
            "rules-beyond-intent",
            "the kernel holds far more of kube-proxy's rules than it means to have",
            evidence,
            "leftovers of an earlier kube-proxy, perhaps of the other iptables backend: "
            f"{_CLEANING}",
        )


def _deep(snapshot: Snapshot) -> Iterator[Finding]:
    for family, depths in depths_by_family(_rulesets(snapshot)).items():
        middle = nearest_rank(depths, 0.5) if depths else 0
        if middle < DEEP:
            continue
        yield Finding(
            Severity.WARNING,
            "rules-deep",
            f"a new connection is checked against {middle} rules before its Service's own "
            f"({family}, median)",
            (
                "only its first packet pays; those of established connections pay nothing",
                f"deepest of {len(depths)} Service ports: {depths[-1]} rules",
            ),
            "mode nftables looks Services up in a map; so large a ruleset also makes kube-proxy's "
            "writes slow, which hurts more than the walk",
        )


def _writers(ruleset: Ruleset) -> Iterator[Finding]:
    transactions = ruleset.follow.transactions if ruleset.follow else {}
    total = sum(transactions.values())
    busy = {
        process: number
        for process, number in transactions.items()
        if process and number > 1 and number >= WRITER_SHARE * total
    }
    if len(busy) > 1:
        yield Finding(
            Severity.INFO,
            "several-writers",
            f"{len(busy)} programs rewrite nf_tables",
            tuple(
                f"{process}: {count(number, 'transaction')} since vipscope started"
                for process, number in sorted(busy.items(), key=lambda item: (-item[1], item[0]))
            ),
            "each commit delays the others'; find out why the one that is not kube-proxy writes so "
            "often",
        )


# --- IPVS -----------------------------------------------------------------------------------------


def ipvs(snapshot: Snapshot) -> Iterator[Finding]:
    """Black holes and harmful settings; only where there is any virtual server."""
    record = _one(snapshot, Ipvs)
    servers = sum(record.virtual_servers.values()) if record else 0
    if record is None or not servers:
        return
    unbound = {of: number for of, number in (record.unbound_addresses or {}).items() if number}
    if unbound:
        yield Finding(
            Severity.BROKEN,
            "ipvs-unbound-addresses",
            f"{count(sum(unbound.values()), 'virtual address')} bound to no device of the node: "
            "packets for it never reach IPVS",
            tuple(f"{family}: {number}" for family, number in sorted(unbound.items())),
            "restart kube-proxy, which binds them to kube-ipvs0, and find out what took them away",
        )
    empty = {of: number for of, number in record.empty_virtual_servers.items() if number}
    if empty:
        yield Finding(
            Severity.INFO,
            "empty-virtual-servers",
            f"{count(sum(empty.values()), 'virtual server')} without a real server",
            tuple(f"{family} {protocol}: {n}" for (family, protocol), n in sorted(empty.items())),
            "right for Services without endpoints, which refuse connections; else see what the "
            "comparison with the API says",
        )
    yield from _sysctls(record.sysctls, servers, snapshot.node.kernel)


def _sysctls(values: Mapping[str, int], servers: int, kernel: str) -> Iterator[Finding]:
    def harmful(name: str, title: str, better: int) -> Finding:
        return Finding(
            Severity.WARNING,
            f"ipvs-{name.replace('_', '-')}",
            title,
            (f"net.ipv4.vs.{name} = {values[name]}",),
            f"`sysctl -w net.ipv4.vs.{name}={better}`, and find out who set it otherwise",
        )

    if values.get("expire_nodest_conn") == 0:
        title = "connections to a real server that is gone hang until they time out"
        yield harmful("expire_nodest_conn", title, 1)
    release = _release(kernel)
    if values.get("conn_reuse_mode") == 1 and release and release < REUSE_IS_CHEAP:
        title = f"a client that uses a port again waits a second (Linux {kernel})"
        yield harmful("conn_reuse_mode", title, 0)
    if values.get("run_estimation") == 1 and servers >= ESTIMATED_SERVERS:
        title = f"estimating the rates of {servers} virtual servers holds up packets"
        yield harmful("run_estimation", title, 0)


def _release(kernel: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", kernel)
    return (int(match[1]), int(match[2])) if match else None


# --- connection tracking --------------------------------------------------------------------------


def conntrack(snapshot: Snapshot) -> Iterator[Finding]:
    """How full its table is, and what was lost by it since boot."""
    record = _one(snapshot, Conntrack)
    if record is None:
        return
    if record.limit and record.entries >= CONNTRACK_FILLED * record.limit:
        full = record.entries >= record.limit
        yield Finding(
            Severity.BROKEN if full else Severity.WARNING,
            "conntrack-full",
            "the connection tracking table is full: new connections are dropped"
            if full
            else "the connection tracking table is nearly full",
            (f"{record.entries} of {record.limit} entries",),
            "raise net.netfilter.nf_conntrack_max, and find out who opens so many connections",
        )
    for name, (what, fate, advice) in _LOST.items():
        if number := record.statistics.get(name):
            yield Finding(
                Severity.INFO,
                f"conntrack-{name.replace('_', '-')}",
                f"{count(number, what)} {fate}, since boot",
                (_fate_of_packets(record),) if name == "insert_failed" else (),
                f"if it grows: {advice}",
            )


def _fate_of_packets(record: Conntrack) -> str:
    """What became of packets whose connection could not be inserted, mostly for another's clash.

    Since Linux 5.10 a clash that is resolved is no failed insertion any more, but counted apart
    ("netfilter: conntrack: add clash resolution stat counter").
    """
    if "clash_resolve" in record.statistics:
        return "the kernel dropped their packets"
    return "the kernel dropped their packets, but for clashes that it resolved: it counts them, too"


_LOST: Final[Mapping[str, tuple[str, str, str]]] = {
    "drop": (
        "packet",
        "dropped because connection tracking failed",
        "the table was full, or insertions failed",
    ),
    "early_drop": ("connection", "forgotten to make room", "the table was full"),
    "insert_failed": (
        "insertion",
        "of a connection into the table failed",
        "mostly DNS over UDP, asking A and AAAA at once; have a DNS cache on the node",
    ),
    "chain_too_long": (
        "connection",
        "refused by a crowded hash bucket",
        "raise net.netfilter.nf_conntrack_buckets",
    ),
}
"""Statistic -> what it counts, what became of that, and what it comes from or what to do."""


def _rulesets(snapshot: Snapshot) -> list[Ruleset]:
    records = (reading.record for _, reading in sorted(snapshot.readings.items()))
    return [record for record in records if isinstance(record, Ruleset)]


def _one(snapshot: Snapshot, kind: type[R]) -> R | None:
    records = (reading.record for reading in snapshot.readings.values())
    return next((record for record in records if isinstance(record, kind)), None)
