"""What a trace goes by: what the API, the kernel, the cluster's DNS and the network itself said.

Where a source said nothing, the reason stands in its place, a text for the operator.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vipscope.cluster import EndpointSlice, Pod, Service
from vipscope.dataplane.desired import DesiredPort, Place
from vipscope.dataplane.excerpt import Excerpt
from vipscope.dataplane.expected import Expected

Backend = Literal["nft", "legacy", ""]
"""Of mode iptables; the other modes have but one."""


class Flow(NamedTuple):
    """What of a tracked connection tells how it fares."""

    state: str
    """Of TCP, as SYN_SENT or ESTABLISHED; "" of other protocols."""
    replied: bool
    """Whether a packet has ever come back."""
    backend: str
    """Where it was translated to, `ip:port`: the destination itself when it was not."""


@dataclass(frozen=True, slots=True)
class Flows:
    """The tracked connections to one destination."""

    counts: Mapping[Flow, int]
    complete: bool = True
    """False: there were too many entries to read them all."""


class Outcome(enum.StrEnum):
    """What became of a TCP connection."""

    CONNECTED = "connected"
    REFUSED = "refused"
    """A reset, or an ICMP message that says so."""
    TIMED_OUT = "timed out"
    FAILED = "failed"
    """Anything else: no route, say."""


class Attempt(NamedTuple):
    """One attempt to connect."""

    outcome: Outcome
    detail: str
    """How long it took, or what the kernel said."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a DNS server says of a name."""

    code: str
    """NOERROR, NXDOMAIN, SERVFAIL, …"""
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    """Names that it is an alias of, one after the other."""


@dataclass(frozen=True, slots=True)
class Question:
    """A name that was asked for, and what came of it."""

    name: str
    server: str
    """Whom; "" when there was nobody to ask."""
    answers: Mapping[str, Answer | str]
    """Type (A, AAAA) -> the answer, or why there is none. Empty: `reason` says why not asked."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the API server says."""

    service: Service | None
    """None: there is no such Service."""
    slices: Sequence[EndpointSlice] = ()
    """All of the Service."""
    pods: Sequence[Pod] | str = ()
    """Of the Service's namespace; read only where an endpoint is looked for in vain."""
    node: str = ""
    """Why the node's zone is not known, "" when it is."""


class Program(NamedTuple):
    """One mode's program in the kernel."""

    backend: Backend
    expected: Expected
    """What this mode must hold for the Service port."""
    held: Excerpt

    @property
    def name(self) -> str:
        """As people call it: `iptables (nft)`, `nftables`."""
        mode = self.held.program.mode
        return f"{mode} ({self.backend})" if self.backend else mode


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel holds of one Service port."""

    programs: tuple[Program, ...]
    """Of every mode of which there is anything."""
    unread: tuple[str, ...] = ()
    """What could not be read, and why."""
    bound: bool | None = None
    """Whether a device has the cluster IP: mode ipvs needs it. None: not known."""


@dataclass(frozen=True, slots=True)
class Way:
    """A Service port of one family, and how its packets fare on this node."""

    port: DesiredPort
    kernel: Kernel
    through: Attempt | None
    """A connection to the cluster IP; None: not tried."""
    straight: Mapping[str, Attempt]
    """Endpoint -> a connection to it."""
    left_out: int = 0
    """Endpoints that were not tried."""
    flows: Flows | str = ""


@dataclass(frozen=True, slots=True)
class Conntrack:
    """How full connection tracking's table is."""

    entries: int
    limit: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a trace goes by."""

    namespace: str
    name: str
    wanted_port: str
    """A port's name or number, "" for all."""
    place: Place
    cluster: Cluster | str
    question: Question | None = None
    ways: tuple[Way, ...] = ()
    conntrack: Conntrack | str = ""
    now: float = 0.0
    """Unix time."""
