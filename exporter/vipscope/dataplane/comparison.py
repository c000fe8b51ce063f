"""All Services that a node should know beside one mode's program, both address families at once."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Set
from typing import NamedTuple

from vipscope.dataplane import expected
from vipscope.dataplane.desired import DesiredPort, Family, PortKey
from vipscope.dataplane.drift import GRACE, Drift, Report
from vipscope.dataplane.expected import Expected
from vipscope.dataplane.programmed import Destination, Mode, Programmed

ServiceKey = tuple[str, str]
"""Namespace and name."""

Addresses = Mapping[Family, Set[str]]


class _Near(NamedTuple):
    """Of one Service port."""

    in_own_zone: int
    endpoints: int


class Comparison:
    """What one node should hold of each Service, compared with what it does hold.

    Times are seconds of any one clock that does not go back. `node_addresses` take node ports in
    mode ipvs; the other modes do not care.
    """

    def __init__(
        self,
        mode: Mode,
        programs: Mapping[Family, Programmed],
        node_addresses: Addresses,
        *,
        grace: float = GRACE,
    ) -> None:
        self.mode = mode
        self._expect = _expecting(mode, node_addresses)
        self._drifts = {family: Drift(held, grace=grace) for family, held in programs.items()}
        self._ports: dict[ServiceKey, dict[PortKey, _Near]] = {}
        self._in_own_zone = self._endpoints = 0

    @property
    def same_zone_ratio(self) -> float | None:
        """Share of the endpoints of all Service ports that are in the node's zone."""
        return self._in_own_zone / self._endpoints if self._endpoints else None

    def put(self, service: ServiceKey, ports: Iterable[DesiredPort], now: float) -> bool:
        """What a node should hold of a Service; no ports: nothing. Returns whether that is new."""
        changed = False
        before = self._ports.pop(service, {})
        after = {}
        for port in ports:
            after[port.key] = _Near(port.in_own_zone, len(port.reachable))
            changed |= self._drifts[port.key.family].update(port.key, self._expect(port), now)
        for key in before.keys() - after.keys():
            changed |= self._drifts[key.family].update(key, None, now)
        if after:
            self._ports[service] = after
        self._in_own_zone += _sum(after, 0) - _sum(before, 0)
        self._endpoints += _sum(after, 1) - _sum(before, 1)
        return changed

    def services(self) -> list[ServiceKey]:
        """All Services of which the node should hold anything."""
        return list(self._ports)

    def ports_of(self, service: ServiceKey) -> Iterable[PortKey]:
        """A Service's ports that the node should know, each in each of its families."""
        return self._ports.get(service, ())

    def owner(self, family: Family, destination: Destination) -> PortKey | None:
        """The one Service port that a destination belongs to."""
        return self._drifts[family].owner(destination)

    def chains(self, port: PortKey) -> Iterable[str]:
        """A Service port's chains that spread connections over its endpoints."""
        return self._drifts[port.family].chains(port)

    def agrees(self, service: ServiceKey) -> bool:
        """Whether the kernel holds just what it should of a Service."""
        return all(self._drifts[key.family].agrees(key) for key in self.ports_of(service))

    def follow(self, now: float) -> set[PortKey]:
        """Compare again what changed in the kernel, and return which Service ports that are."""
        return set().union(*(drift.follow(now) for drift in self._drifts.values()))

    @property
    def disagrees(self) -> bool:
        """Whether anything does, for however short a time."""
        return any(drift.disagrees for drift in self._drifts.values())

    def ripens(self, confirmed: float) -> float | None:
        """When the next disagreement will have lasted for the grace period."""
        ripe = (drift.ripens(confirmed) for drift in self._drifts.values())
        return min((each for each in ripe if each is not None), default=None)

    def report(self, confirmed: float, most: int) -> Report:
        """What has lasted, in both families; see `Drift.report`."""
        reports = [drift.report(confirmed, most) for drift in self._drifts.values()]
        named = heapq.nsmallest(
            most,
            (each for report in reports for each in report.named),
            key=lambda each: (-each.age, str(each.port), each.kind),
        )
        faults = [item for report in reports for item in report.faults.items()]
        return Report(
            faults={fault: max(age for one, age in faults if one is fault) for fault, _ in faults},
            missing_services=sum(report.missing_services for report in reports),
            orphaned_services=sum(report.orphaned_services for report in reports),
            missing_endpoints=sum(report.missing_endpoints for report in reports),
            stale_endpoints=sum(report.stale_endpoints for report in reports),
            oldest=max(report.oldest for report in reports),
            named=tuple(named),
            not_programmed=frozenset().union(*(report.not_programmed for report in reports)),
            stale=frozenset().union(*(report.stale for report in reports)),
        )


def _expecting(mode: Mode, node_addresses: Addresses) -> Callable[[DesiredPort], Expected]:
    match mode:
        case "iptables":
            return expected.iptables
        case "nftables":
            return expected.nftables
        case "ipvs":
            return lambda port: expected.ipvs(port, node_addresses.get(port.key.family, ()))


def _sum(ports: Mapping[PortKey, _Near], field: int) -> int:
    return sum(each[field] for each in ports.values())
