"""Frozen records: what the kernel and the node said, and when.

A collector returns one record; the runner wraps it in a `Reading` with outcome, time and cost and
swaps it into the immutable `Snapshot`. Everything downstream (dataplane, exposition, page) is a
pure function of a snapshot.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple


class Outcome(enum.StrEnum):
    """How a collector's last read ended. Anything but OK means: no series of it, old or guessed."""

    OK = "ok"
    ABSENT = "absent"
    DENIED = "denied"
    TIMEOUT = "timeout"
    FAILED = "failed"
    DISABLED = "disabled"


class ReadError(Exception):
    """A read that ended otherwise than OK; the subclass names the outcome."""

    outcome = Outcome.FAILED


class AbsentError(ReadError):
    """The node has no such thing: a kernel part that is not there, a process that does not run."""

    outcome = Outcome.ABSENT


class DeniedError(ReadError):
    """The kernel refused for want of privilege."""

    outcome = Outcome.DENIED


class BrokenError(ReadError):
    """What was read cannot be understood: truncated, corrupt, or of an unknown shape."""


Verdict = Literal["", "accept", "drop", "return"]
"""How a rule ends the evaluation of its chain (return) or of the hook's base chain."""


class Rule(NamedTuple):
    """What of a rule decides a first packet's way. A tuple, for there are thousands."""

    target: str = ""
    """The chain that it jumps or goes to."""
    goto: bool = False
    """Whether evaluation does not come back from the target."""
    verdict: Verdict = ""
    """Its final verdict, when it ends the chain or the hook."""
    always: bool = False
    """Whether every new connection's first packet meets its conditions."""
    lookup: str = ""
    """The named verdict map that it looks the packet up in."""


@dataclass(frozen=True, slots=True)
class Count:
    """Rules and chains (base chains included) of one class."""

    rules: int
    chains: int


@dataclass(frozen=True, slots=True)
class Follow:
    """What following nf_tables notifications has told since the start. All are running totals."""

    transactions: Mapping[str, int]
    """Committed transactions by the writer's process name; "" where the name is not known."""
    changes: Mapping[tuple[str, str], int]
    """(object, op) -> changes: rule, chain, set, element; add, delete."""
    resyncs: Mapping[str, int]
    """Reason -> full reads: start, overrun, interrupted, periodic."""
    last_change: float | None
    """Unix time of the last commit that was seen, None before the first."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """One backend's rules as the kernel holds them, counted at one generation."""

    backend: str
    """nft or legacy."""
    counts: Mapping[tuple[str, str, str, str], Count]
    """(family, table, owner, class) -> rules and chains."""
    set_elements: Mapping[tuple[str, str, str], int]
    """(family, table, set) -> elements of kube-proxy's named sets and maps."""
    depths: Mapping[str, tuple[int, ...]]
    """Family (ipv4, ipv6) -> for each Service port the rules checked before its own, ascending."""
    counted_at: float
    """Unix time at which the counted state was known to be the kernel's."""
    generation: int | None = None
    """nf_tables generation of the counted state; None for legacy."""
    follow: Follow | None = None
    """None for legacy, which has no notifications."""
    table_sizes: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """Legacy only: (family, table) -> (entries, bytes), from the O(1) request of the last read."""


@dataclass(frozen=True, slots=True)
class Ipvs:
    """IPVS virtual and real servers and the node's IPVS totals."""

    backend: ClassVar[str] = "ipvs"

    virtual_servers: Mapping[tuple[str, str, str], int]
    """(family, protocol, scheduler) -> virtual servers. Family: ipv4, ipv6, or unknown for a
    firewall mark of which nothing tells it. Protocol: tcp, udp, sctp, fwmark."""
    empty_virtual_servers: Mapping[tuple[str, str], int]
    """(family, protocol) -> virtual servers without a real server."""
    real_servers: Mapping[tuple[str, str, str], int]
    """(family, protocol, state) -> real servers; state active (weight above 0) or drained."""
    active_connections: int
    inactive_connections: int
    connections: int
    """Connections since boot; this and the next four from the kernel's own totals."""
    packets: Mapping[str, int]
    """Direction (in, out) -> packets."""
    bytes: Mapping[str, int]
    sysctls: Mapping[str, int]
    """/proc/sys/net/ipv4/vs name -> value."""
    services: int | None
    """IPv4 virtual servers by the O(1) request, fresh at each read; None without NET_ADMIN."""
    counted_at: float
    unbound_addresses: Mapping[str, int] | None = None
    """Family -> addresses of virtual servers that no device of the node has, so that packets to
    them never reach IPVS: black holes. None where there is no device kube-ipvs0."""


@dataclass(frozen=True, slots=True)
class Conntrack:
    """Connection tracking: fill and per-CPU statistics summed over all CPUs."""

    entries: int
    limit: int
    buckets: int
    statistics: Mapping[str, int]
    """found, invalid, insert, … -> count; only those that this kernel reports."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """Signs that the node's network stack is short of time. None: not readable here."""

    tcp_syn_retransmits: int | None
    softnet_dropped: int | None
    softnet_time_squeezed: int | None
    softirq_seconds: float | None
    xtables_lock_held: int | None
    """Holders of /run/xtables.lock; None where other processes' locks cannot be seen."""
    xtables_lock_waiters: int | None


@dataclass(frozen=True, slots=True)
class KubeProxy:
    """What kube-proxy says of itself on localhost. None or missing: it does not say."""

    healthy: bool | None
    mode: str | None
    sync_pending_seconds: float | None
    last_sync: float | None
    restore_failures: float | None
    intended_rules: Mapping[tuple[str, str], float]
    """(family, table) -> rules that kube-proxy means to have written."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How values are spread."""

    bounds: tuple[float, ...]
    """Upper bounds, inclusive and ascending, of all buckets but the last, which has none."""
    counts: tuple[int, ...]
    """Values in each bucket alone: one more than there are bounds."""
    sum: float
    """Of all values."""


@dataclass(frozen=True, slots=True)
class Probes:
    """What the prober has measured. Paths are vip, through the Service, and direct."""

    durations: Mapping[tuple[str, str], Histogram]
    """(probe, path) -> seconds of all that succeeded since the start."""
    failures: Mapping[tuple[str, str, str], int]
    """(probe, path, reason) -> failures since the start, for each reason that its kind can have."""
    handshakes: Mapping[tuple[str, str], tuple[float, ...]]
    """(probe, path) -> seconds of the TCP handshakes of the last minutes."""
    loopback: Mapping[str, tuple[float, ...]]
    """Family (ipv4, ipv6) -> seconds by which the prober's handshakes with itself took longer than
    the round trips after them, in the last minutes. Their first packets were checked against all
    rules, for no Service took them; later ones against none of a Service."""


@dataclass(frozen=True, slots=True)
class Watch:
    """How a watch of one of the API's resources fares."""

    restarts: Mapping[str, int]
    """Reason -> how often it had to start anew."""
    last_event: float
    """Unix time of the last list, event or bookmark."""
    objects: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the API server says of Services and of the EndpointSlices that kube-proxy watches.

    As it was last said: it stays while the server is away, and `watches` tell since when.
    """

    services: Mapping[str, int]
    """Type (ClusterIP, NodePort, LoadBalancer, ExternalName, Headless) -> Services."""
    session_affinity: int
    """Services with session affinity."""
    traffic_policies: Mapping[tuple[str, str], int]
    """(direction, policy) -> Services that have such traffic."""
    topology: Mapping[str, int]
    """How a Service asks for near endpoints (Auto, PreferClose, …) -> Services that do."""
    slices: Mapping[str, int]
    """Address type (IPv4, IPv6, FQDN) -> EndpointSlices."""
    slice_endpoints: Histogram
    """Endpoints in a slice."""
    endpoints: Mapping[str, int]
    """Condition (ready, serving, terminating, not_ready) -> endpoints; one may have several."""
    slice_events: Mapping[str, int]
    """Event (added, modified, deleted) -> how many since the start; first lists count nothing."""
    slice_event_bytes: int
    endpoint_changes: Mapping[str, int]
    """Change (added, removed, ready, unready, terminating) -> endpoints since the start."""
    service_changes: Mapping[tuple[str, str], int]
    """(namespace, name) -> changes of its endpoints while it had a series; ("", ""): the rest."""
    unroutable: Mapping[tuple[str, str, str, str], str]
    """(namespace, name, port, reason) of each Service port that routes to nobody -> what is
    missing, by name, for people: of many Pods or labels the first few."""
    unroutable_services: Mapping[str, int]
    """Reason that was looked for -> Services with a port of that reason."""
    watches: Mapping[str, Watch]
    """By resource."""


class Disagreement(NamedTuple):
    """A Service port of which this node's kernel holds something else than it should."""

    kind: str
    """missing, orphaned, missing_endpoints, stale_endpoints."""
    namespace: str
    """This and the next two are "" of an orphan that the API never had."""
    service: str
    port: str
    """The port's name, which may be empty."""
    held: str
    """Of such an orphan what the kernel calls it, else ""."""
    age: float
    """Seconds since it was first seen; of several endpoints the oldest's."""
    endpoints: tuple[str, ...]
    """Of the last two kinds: `ip:port`."""


class Unroutable(NamedTuple):
    """A Service port that routes to nobody, as far as this node is concerned."""

    namespace: str
    service: str
    port: str
    reason: str
    """no_local_endpoints, not_programmed, stale_backends."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How this node's kernel disagrees with the API, beyond the grace period."""

    mode: str
    """kube-proxy's mode whose program was compared: iptables, nftables, ipvs."""
    backend: str
    """Where that was read: nft, legacy, ipvs."""
    zone: str
    """The node's zone in the API, "" when it has none."""
    faults: Mapping[str, float]
    """What cuts off all Services (empty, prerouting, output, node_ports) -> seconds."""
    services: Mapping[str, int]
    """Kind (missing, orphaned) -> Service ports."""
    endpoints: Mapping[str, int]
    """Kind (missing, stale) -> endpoints of Service ports."""
    oldest: float
    """Age of the oldest disagreement in seconds; 0 when none has lasted for the grace period."""
    named: tuple[Disagreement, ...]
    """The oldest, no more than have series of their own."""
    unroutable: tuple[Unroutable, ...]
    """No more of a reason than have series of their own."""
    unroutable_services: Mapping[str, int]
    """Reason that this node can tell -> Services with a port of that reason."""
    undecided: bool
    """Whether something disagrees that may still pass within the grace period."""
    new_connections: Mapping[tuple[str, str, str], int] | None
    """(namespace, service, port) -> connections seen since the start, of the busiest; ("", "", "")
    for all others. None in modes whose rules do not count; so is the next."""
    imbalance: Mapping[tuple[str, str, str], float] | None
    """(namespace, service, port) -> the busiest backend's connections over the mean."""
    same_zone_ratio: float | None
    """Share of the endpoints that are in the node's own zone; None without a zone or endpoints."""
    since_change: Histogram | None
    """Seconds from an endpoint's change to the kernel's commit. None where the kernel does not tell
    of commits; so is the next."""
    since_event: Histogram | None
    """Seconds from this node's hearing of it."""
    watches: Mapping[str, Watch]
    """By resource."""


Record = Ruleset | Ipvs | Conntrack | Pressure | KubeProxy | Cluster | Drift | Probes


@dataclass(frozen=True, slots=True)
class Reading:
    """One collector's last read: its outcome, its cost and, only when OK, its record."""

    outcome: Outcome
    detail: str = ""
    """Why the outcome is not OK, for people; "" when it is."""
    duration: float | None = None
    """Wall seconds of the last read; None before the first."""
    cpu_seconds: float = 0.0
    """CPU seconds of all reads so far."""
    last_success: float | None = None
    """Unix time of the last OK read."""
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """Who this node is."""

    nodename: str
    kernel: str


@dataclass(frozen=True, slots=True)
class Reload:
    """How the web configuration file was last read."""

    ok: bool
    """Whether it was good, with the files that it names. If not, what was before is in force."""
    last_success: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is known at one moment. Replaced, never changed."""

    node: Node
    readings: Mapping[str, Reading] = field(default_factory=lambda: MappingProxyType({}))
    reload: Reload | None = None
    """None where there is no web configuration file."""

    def with_reading(self, name: str, reading: Reading) -> Snapshot:
        """The snapshot in which the collector `name` last said `reading`."""
        return replace(self, readings=MappingProxyType({**self.readings, name: reading}))

    def with_reload(self, reload: Reload) -> Snapshot:
        """The snapshot in which the web configuration file was last read so."""
        return replace(self, reload=reload)
