"""Where the kernel's program disagrees with the API: what is missing, orphaned or stale.

Each Service port is compared by itself, and only when what is wanted or what is held of it changed.
A disagreement counts once it has lasted for a grace period, in which kube-proxy can catch up.

What is no drift: chains that no way in leads to, which kube-proxy removes late in large clusters;
real servers of weight 0, which keep their connections until these end.
"""

from __future__ import annotations

import enum
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from vipscope.dataplane.desired import PortKey
from vipscope.dataplane.expected import VIRTUAL_SERVER, Entry, Expected
from vipscope.dataplane.programmed import (
    LOOKUP,
    REFUSALS,
    Destination,
    Mode,
    Programmed,
    stem,
)

_Key = TypeVar("_Key")

GRACE: Final = 10.0
"""Seconds that a disagreement may last."""

NOTHING: Final = Expected(entries=frozenset(), backends={})
"""What is expected of a Service port that the API does not have, or that kube-proxy skips."""

LEADING = ("KUBE-EXT-", "KUBE-FW-", "external-")
"""Chains of a Service port that must lead to its endpoints although they have none themselves."""


class Kind(enum.StrEnum):
    """How a Service port disagrees."""

    MISSING = "missing"
    """The kernel lacks a way in or a chain, or they lead nowhere."""
    ORPHANED = "orphaned"
    """The kernel has a way in that the API does not want."""
    MISSING_ENDPOINTS = "missing_endpoints"
    STALE_ENDPOINTS = "stale_endpoints"


class Fault(enum.StrEnum):
    """What cuts off all Services of a node at once."""

    EMPTY = "the kernel holds none of kube-proxy's ways in"
    PREROUTING = "packets from pods and from outside never reach kube-proxy's rules"
    OUTPUT = "packets from the node itself never reach kube-proxy's rules"
    NODE_PORTS = "packets for node ports never reach kube-proxy's rules"


class Hop(NamedTuple):
    """A rule without which a fault is there: a chain, and where it must lead."""

    chain: str
    to: str
    fault: Fault


class _Shape(NamedTuple):
    """What a mode needs for all Services together."""

    services: str
    """The place of the ways in to cluster IPs."""
    node_ports: str
    hops: tuple[Hop, ...]


_SHAPES: Final[Mapping[Mode, _Shape]] = {
    "iptables": _Shape(
        "nat/KUBE-SERVICES",
        "nat/KUBE-NODEPORTS",
        (
            Hop("PREROUTING", "KUBE-SERVICES", Fault.PREROUTING),
            Hop("OUTPUT", "KUBE-SERVICES", Fault.OUTPUT),
            Hop("KUBE-SERVICES", "KUBE-NODEPORTS", Fault.NODE_PORTS),
        ),
    ),
    "nftables": _Shape(
        "service-ips",
        "service-nodeports",
        (
            Hop("nat-prerouting", "services", Fault.PREROUTING),
            Hop("nat-output", "services", Fault.OUTPUT),
            Hop("services", f"{LOOKUP}service-ips", Fault.PREROUTING),
            Hop("services", f"{LOOKUP}service-ips", Fault.OUTPUT),
            Hop("services", f"{LOOKUP}service-nodeports", Fault.NODE_PORTS),
        ),
    ),
    "ipvs": _Shape(VIRTUAL_SERVER, VIRTUAL_SERVER, ()),
}


class Finding(NamedTuple):
    """One disagreement."""

    kind: Kind
    port: PortKey | str
    """The Service port; of an orphan that was never in the API what the kernel calls it."""
    endpoint: str = ""
    """Of the last two kinds."""


class Drifting(NamedTuple):
    """A Service port that disagrees."""

    port: PortKey | str
    kind: Kind
    age: float
    """Seconds since it was first seen; of several endpoints the oldest's."""
    endpoints: tuple[str, ...]
    """Of the last two kinds, sorted."""


@dataclass(frozen=True, slots=True)
class Report:
    """What has disagreed for longer than the grace period."""

    faults: Mapping[Fault, float]
    """Fault -> seconds since it was first seen."""
    missing_services: int
    """Service ports; all that are wanted while a fault cuts them off."""
    orphaned_services: int
    missing_endpoints: int
    stale_endpoints: int
    oldest: float
    """Age of the oldest, in seconds; 0 when all agrees."""
    named: tuple[Drifting, ...]
    """The oldest first, no more than were asked for."""
    not_programmed: frozenset[tuple[str, str]] = frozenset()
    """(namespace, name) of Services with a missing port; all that are wanted while a fault cuts
    them off."""
    stale: frozenset[tuple[str, str]] = frozenset()
    """The same of Services with a stale endpoint."""


class Difference(NamedTuple):
    """How what is held of one Service port differs from what is wanted."""

    missing: bool
    unexpected: frozenset[Entry]
    missing_endpoints: frozenset[str]
    stale_endpoints: frozenset[str]

    def findings(self, port: PortKey) -> Iterator[Finding]:
        """The same, one by one."""
        if self.missing:
            yield Finding(Kind.MISSING, port)
        elif self.unexpected:
            yield Finding(Kind.ORPHANED, port)
        for endpoint in self.missing_endpoints:
            yield Finding(Kind.MISSING_ENDPOINTS, port, endpoint)
        for endpoint in self.stale_endpoints:
            yield Finding(Kind.STALE_ENDPOINTS, port, endpoint)


def difference(wanted: Expected, held: Programmed, unexpected: frozenset[Entry]) -> Difference:
    """Compare one Service port. `unexpected` are the ways in that it has and should not have."""
    missing = not all(map(held.holds, wanted.entries))
    missing_endpoints: set[str] = set()
    stale: set[str] = set()
    for chain in wanted.chains - wanted.backends.keys():
        if not held.has(chain):
            missing = True
        elif chain.startswith(LEADING):
            reached = held.endpoints(chain)
            missing |= not reached
            stale |= reached - wanted.endpoints
    for chain, endpoints in wanted.backends.items():
        if not held.has(chain):
            missing = True  # the Service port is named, and not each of its endpoints besides
            continue
        reached = held.endpoints(chain)
        missing |= bool(endpoints) and not reached
        missing_endpoints |= endpoints - reached
        stale |= reached - endpoints
    for entry in unexpected:
        stale |= held.endpoints(entry.target) - wanted.endpoints
    return Difference(missing, unexpected, frozenset(missing_endpoints), frozenset(stale))


class _Claims(NamedTuple):
    """What belongs to a Service port wherever it is found."""

    destinations: frozenset[Destination]
    stems: frozenset[str]

    def __or__(self, other: _Claims) -> _Claims:
        return _Claims(self.destinations | other.destinations, self.stems | other.stems)


_NO_CLAIMS = _Claims(frozenset(), frozenset())
_NOBODY: Set[PortKey] = frozenset()


class Drift:
    """All disagreements of one mode in one address family, kept up to date.

    Times are seconds of any one clock that does not go back. `held` is read when something is
    compared, never changed.
    """

    def __init__(self, held: Programmed, *, grace: float = GRACE) -> None:
        self._held = held
        self._grace = grace
        self._wanted: dict[PortKey, Expected] = {}
        self._wishes: Counter[Entry] = Counter()
        """Ways in that are wanted, by how many Service ports: addresses may be shared."""
        self._places: Counter[str] = Counter()
        """The same by place."""
        self._claims: dict[PortKey, _Claims] = {}
        """Kept beyond the wish, until nothing of it is held any more: so an orphan has a name."""
        self._by_destination: dict[Destination, set[PortKey]] = {}
        self._by_stem: dict[str, set[PortKey]] = {}
        self._unexpected: dict[PortKey, frozenset[Entry]] = {}
        """Ways in that are held and that nobody wants, by the one Service port that answers."""
        self._answering: dict[Entry, PortKey] = {}
        """The same the other way round."""
        self._strays: dict[str, frozenset[Entry]] = {}
        """Ways in that are held and that nobody claims, by the name of the orphan."""
        self._found: dict[PortKey | str, frozenset[Finding]] = {}
        """By Service port, or by the orphan's name."""
        self._since: dict[Finding, float] = {}
        self._faults: dict[Fault, float] = {}

    def update(self, port: PortKey, wanted: Expected | None, now: float) -> bool:
        """The API's wish for one Service port, None when there is none; compared at once.

        Returns whether the wish is another one than before.
        """
        before = self._wanted.pop(port, NOTHING)
        if wanted is not None:
            self._wanted[port] = wanted
        after = wanted or NOTHING
        if before.entries != after.entries:
            self._wish(after.entries, 1)
            self._wish(before.entries, -1)
        self._claim(port, self._claims.get(port, _NO_CLAIMS) | _claims(after), now)
        self._compare(port, now)
        for other in {self._answering.get(entry, port) for entry in after.entries} - {port}:
            self._compare(other, now)  # what it answered for is wanted now
        self._find_faults(now)
        return before != after

    def owner(self, destination: Destination) -> PortKey | None:
        """The one Service port that a destination belongs to."""
        owners = self._by_destination.get(destination, _NOBODY)
        return next(iter(owners)) if len(owners) == 1 else None

    def chains(self, port: PortKey) -> Iterable[str]:
        """A Service port's chains that spread connections over its endpoints."""
        return self._wanted.get(port, NOTHING).backends

    def agrees(self, port: PortKey) -> bool:
        """Whether the kernel holds just what is wanted of a Service port."""
        return port not in self._found

    def follow(self, now: float) -> set[PortKey]:
        """Compare again what changed in the kernel since the last time, and return which ports."""
        changes = self._held.take_changes()
        ports: set[PortKey] = set()
        for entry in changes.entries:
            owners = self._owners(entry)
            ports |= owners
            if not owners:
                self._note_stray(entry, held=self._held.holds(entry), now=now)
        for each in changes.stems:
            ports |= self._by_stem.get(each, _NOBODY)
        for port in ports:
            self._compare(port, now)
        self._find_faults(now)
        return ports

    @property
    def disagrees(self) -> bool:
        """Whether anything does, for however short a time."""
        return bool(self._since or self._faults)

    def ripens(self, confirmed: float) -> float | None:
        """When the next disagreement will have lasted for the grace period; see `report`."""
        seen = (*self._since.values(), *self._faults.values())
        ripe = (first + self._grace for first in seen if confirmed - first < self._grace)
        return min(ripe, default=None)

    def report(self, confirmed: float, most: int) -> Report:
        """What has lasted, and the `most` oldest by name.

        `confirmed` is when the program was last known to be the kernel's: while that cannot be
        read, nothing becomes older.
        """
        since = {
            finding: first
            for finding, first in self._since.items()
            if confirmed - first >= self._grace
        }
        faults = {
            fault: confirmed - first
            for fault, first in self._faults.items()
            if confirmed - first >= self._grace
        }
        kinds = Counter(finding.kind for finding in since)
        cut_off = self._cut_off(faults.keys())
        ages = [*faults.values(), *(confirmed - first for first in since.values())]
        return Report(
            faults=faults,
            missing_services=len(
                cut_off | {finding.port for finding in since if finding.kind is Kind.MISSING}
            ),
            orphaned_services=kinds[Kind.ORPHANED],
            missing_endpoints=kinds[Kind.MISSING_ENDPOINTS],
            stale_endpoints=kinds[Kind.STALE_ENDPOINTS],
            oldest=max(ages, default=0.0),
            named=_oldest(since, confirmed, most),
            not_programmed=_services_of(since, Kind.MISSING) | {port[:2] for port in cut_off},
            stale=_services_of(since, Kind.STALE_ENDPOINTS),
        )

    def _wish(self, entries: Iterable[Entry], times: int) -> None:
        for entry in entries:
            self._places[entry.place] += times
            self._wishes[entry] += times
            if not self._wishes[entry]:
                del self._wishes[entry]

    def _cut_off(self, faults: Set[Fault]) -> Set[PortKey]:
        """The wanted Service ports that some of their packets do not reach."""
        if faults - {Fault.NODE_PORTS}:
            return self._wanted.keys()
        if not faults:
            return _NOBODY
        place = _SHAPES[self._held.mode].node_ports
        return {
            port
            for port, wanted in self._wanted.items()
            if any(entry.place == place for entry in wanted.entries)
        }

    def _claim(self, port: PortKey, now: _Claims, at: float) -> None:
        before = self._claims.get(port, _NO_CLAIMS)
        if now == before:
            return
        _own(self._by_destination, port, before.destinations, now.destinations)
        _own(self._by_stem, port, before.stems, now.stems)
        if now == _NO_CLAIMS:
            del self._claims[port]
        else:
            self._claims[port] = now
        if self._strays:
            for entry in self._entries(now):
                self._note_stray(entry, held=False, now=at)

    def _compare(self, port: PortKey, now: float) -> None:
        wanted = self._wanted.get(port, NOTHING)
        unexpected = self._unwanted(port)
        if unexpected:
            # What they lead to is the port's as well, and a change there concerns it.
            targets = {entry.target for entry in unexpected} - REFUSALS
            more = _Claims(frozenset(), frozenset(map(stem, targets)))
            self._claim(port, self._claims[port] | more, now)
            unexpected = self._unwanted(port)
        self._answer(port, unexpected)
        found = difference(wanted, self._held, unexpected)
        self._note(port, frozenset(found.findings(port)), now)
        if not found.unexpected:
            self._claim(port, _claims(wanted), now)

    def _unwanted(self, port: PortKey) -> frozenset[Entry]:
        """Ways in of a Service port that nobody wants, but for those that another answers for."""
        return frozenset(
            entry
            for entry in self._entries(self._claims.get(port, _NO_CLAIMS))
            if entry not in self._wishes and self._answering.get(entry, port) == port
        )

    def _answer(self, port: PortKey, now: frozenset[Entry]) -> None:
        before = self._unexpected.pop(port, frozenset())
        for entry in before - now:
            del self._answering[entry]
        for entry in now - before:
            self._answering[entry] = port
        if now:
            self._unexpected[port] = now

    def _entries(self, claims: _Claims) -> set[Entry]:
        held = self._held
        found = {entry for each in claims.destinations for entry in held.at(each)}
        found.update(entry for each in claims.stems for entry in held.to(each))
        return found

    def _owners(self, entry: Entry) -> Set[PortKey]:
        by_destination = self._by_destination.get(entry[1:4], _NOBODY)
        return by_destination | self._by_stem.get(stem(entry.target), _NOBODY)

    def _note_stray(self, entry: Entry, *, held: bool, now: float) -> None:
        """A way in that nobody claims came, or it went or found an owner."""
        if not entry.port:
            return  # in set cluster-ips, where no Service port is told
        name = _stray_name(entry)
        before = self._strays.get(name, frozenset())
        strays = before | {entry} if held else before - {entry}
        if strays == before:
            return
        if strays:
            self._strays[name] = strays
        else:
            del self._strays[name]
        self._note(name, frozenset([Finding(Kind.ORPHANED, name)] if strays else ()), now)

    def _note(self, subject: PortKey | str, found: frozenset[Finding], now: float) -> None:
        before = self._found.get(subject, frozenset())
        if found == before:
            return
        for finding in before - found:
            del self._since[finding]
        for finding in found - before:
            self._since[finding] = now
        if found:
            self._found[subject] = found
        else:
            del self._found[subject]

    def _find_faults(self, now: float) -> None:
        found = frozenset(_faults(self._held, self._places))
        for fault in self._faults.keys() - found:
            del self._faults[fault]
        for fault in found:
            self._faults.setdefault(fault, now)


def hops(mode: Mode, wanted: Mapping[str, int]) -> list[Hop]:
    """The rules that bring packets to Services at all.

    `wanted` is how many ways in are wanted, by place: what leads to none of them is left out.
    """
    shape = _SHAPES[mode]
    if not wanted.get(shape.services):
        return []
    return [
        hop
        for hop in shape.hops
        if hop.fault is not Fault.NODE_PORTS or wanted.get(shape.node_ports)
    ]


def _faults(held: Programmed, wanted: Mapping[str, int]) -> Iterator[Fault]:
    """What cuts off all Services, if any ways in are wanted."""
    services = _SHAPES[held.mode].services
    if wanted.get(services) and held.is_empty(services):
        yield Fault.EMPTY
        return
    for hop in hops(held.mode, wanted):
        if not held.leads(hop.chain, hop.to):
            yield hop.fault


def _claims(wanted: Expected) -> _Claims:
    chains = wanted.chains or wanted.backends.keys()
    return _Claims(
        frozenset([entry[1:4] for entry in wanted.entries]),
        frozenset([stem(chain) for chain in chains]),
    )


def _own(index: dict[_Key, set[PortKey]], port: PortKey, before: Set[_Key], now: Set[_Key]) -> None:
    for key in before - now:
        index[key].discard(port)
        if not index[key]:
            del index[key]
    for key in now - before:
        index.setdefault(key, set()).add(port)


def _stray_name(entry: Entry) -> str:
    """The name that all ways into one unknown Service port have in common, as far as it shows."""
    if entry.target in REFUSALS:
        return f"{entry.address}:{entry.port}/{entry.protocol}"
    own = stem(entry.target)
    return own.partition("-")[2] or own


def _services_of(found: Iterable[Finding], kind: Kind) -> frozenset[tuple[str, str]]:
    return frozenset(
        finding.port[:2]
        for finding in found
        if finding.kind is kind and isinstance(finding.port, PortKey)
    )


def _oldest(since: Mapping[Finding, float], now: float, most: int) -> tuple[Drifting, ...]:
    first: dict[tuple[PortKey | str, Kind], float] = {}
    endpoints: dict[tuple[PortKey | str, Kind], list[str]] = {}
    for finding, seen in since.items():
        key = finding.port, finding.kind
        first[key] = min(seen, first.get(key, seen))
        if finding.endpoint:
            endpoints.setdefault(key, []).append(finding.endpoint)
    # By name where the age is the same, so that the choice stays the same.
    chosen = heapq.nsmallest(most, first, key=lambda key: (first[key], str(key[0]), key[1]))
    return tuple(
        Drifting(*key, now - first[key], tuple(sorted(endpoints.get(key, ())))) for key in chosen
    )
