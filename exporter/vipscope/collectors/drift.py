"""drift: what this node's kernel holds for Services beside what the API wants of it.

The kernel's side comes from the collectors that read it, through `Sources`; the API's from watches
of its own. Both tell what changed, and only that is compared again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.dataplane.comparison import Comparison, ServiceKey
from vipscope.dataplane.desired import Place, PortKey, desired_ports
from vipscope.dataplane.drift import Drifting, Kind, Report
from vipscope.dataplane.latency import ProgrammingLatency
from vipscope.dataplane.programmed import Mode
from vipscope.dataplane.service_traffic import ServiceTraffic
from vipscope.diagnosis.unroutable import Reason, no_local_endpoints
from vipscope.kube.meter import Meter
from vipscope.settings import Settings
from vipscope.snapshot import (
    AbsentError,
    BrokenError,
    DeniedError,
    Disagreement,
    Drift,
    Unroutable,
)
from vipscope.sources import Source, Sources

if TYPE_CHECKING:
    from vipscope.kube.proxied import Proxied, Wish

COALESCE = 0.2
"""Seconds that a read waits after a change for more of them."""
TICK = 1.0
"""Seconds between reads while something disagrees: it becomes older."""
OLDEST = 900.0
"""Seconds after which what the kernel last held is not compared any more."""
NOT_PROGRAMMED = "not_programmed"
STALE_BACKENDS = "stale_backends"


class DriftCollector(Collector):
    """Compares from the first read on.

    Absent where no API server is known, and where the kernel holds no program of kube-proxy and no
    kube-proxy answers: another proxy may do its work.
    """

    name = "drift"
    interval = 5.0
    timeout = 60.0

    def __init__(self, settings: Settings, budget: Budget, sources: Sources | None = None) -> None:
        super().__init__(settings, budget, sources)
        self._meter = Meter()
        self._proxied: Proxied | None = None
        self._latency = ProgrammingLatency()
        self._traffic: ServiceTraffic | None = None
        """None in modes whose rules do not count."""
        self._chosen: tuple[Source, Mode] | None = None
        """What was compared last; it stays so when all of it is gone."""
        self._comparison: Comparison | None = None
        """None: all is to be compared anew."""
        self._gap = True
        """Whether the last read told nothing: what changed since has an unknown time."""
        self._place = Place("")
        self._addresses: object = None
        """The node's addresses that the comparison knows."""
        self._local: dict[ServiceKey, tuple[str, ...]] = {}
        """Service -> its ports that a Local policy leaves without endpoints here."""

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of watches and comparisons so far."""
        return self._meter.cpu_seconds + self.worker.cpu_seconds

    async def read(self) -> Drift:
        """What disagrees now. Raises AbsentError, DeniedError or BrokenError."""
        gap, self._gap = self._gap, True
        if self._proxied is None:
            self._proxied = self._start()
        proxied = self._proxied
        try:
            await proxied.listed()
        finally:
            if proxied.ended:
                await self._end()
        proxied.check_heard()
        place = proxied.place()
        self.sources.wanted = True
        while not all(source.told for source in self.sources.all):
            await self._news()
        source, mode = self._choose()
        if (source, mode) != self._chosen or place != self._place:
            self._comparison, self._chosen, self._place = None, (source, mode), place
        if source.node_addresses != self._addresses:
            self._comparison, self._addresses = None, source.node_addresses
        while source.confirmed is None:
            await self._news()
        if time.monotonic() - source.confirmed > OLDEST:
            raise BrokenError("what the kernel holds could not be confirmed for too long")
        anew = self._comparison is None
        wishes = proxied.all() if anew else proxied.take()
        try:
            record = await self.worker.run(self._compare, source, mode, wishes, anew, gap)
        except BaseException:
            self._comparison = None
            raise
        self._gap = False
        return record

    async def due(self) -> None:
        """Soon after a change on either side, soon again while anything disagrees.

        Past the budget changes wait for the interval: one read then pays for all of them.
        """
        if self._proxied is None or not self.budget.solvent():
            await asyncio.sleep(self.interval)
            return
        disagrees = self._comparison is not None and self._comparison.disagrees
        waits = [
            asyncio.create_task(self._proxied.changed()),
            asyncio.create_task(self._news()),
        ]
        try:
            done, _ = await asyncio.wait(
                waits,
                timeout=TICK if disagrees else self.interval,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for each in waits:
                each.cancel()
        if done:
            await asyncio.sleep(COALESCE)

    async def close(self) -> None:
        """End the watches."""
        self.sources.wanted = False
        await self._end()
        await super().close()

    def _start(self) -> Proxied:
        self.require_api()
        # Only here: importing it takes memory that a node without an API need not pay for.
        from vipscope.kube.proxied import Proxied

        proxied = Proxied(self.settings.kubeconfig, self.settings.node_name, self._meter)
        proxied.start()
        self._comparison = None
        return proxied

    async def _end(self) -> None:
        proxied, self._proxied = self._proxied, None
        if proxied is not None:
            await proxied.close()

    async def _news(self) -> None:
        await self.sources.news.wait()
        self.sources.news.clear()

    def _choose(self) -> tuple[Source, Mode]:
        """The program that is kube-proxy's own now. Raises ReadError where that is not known."""
        with self.sources.lock:
            held = [(source, mode) for source in self.sources.all for mode in source.modes()]
        said = self.sources.said_mode
        if len(held) > 1:
            held = [each for each in held if each[1] == said] or held
        if len(held) > 1:
            found = ", ".join(f"{mode} ({source.backend})" for source, mode in held)
            raise BrokenError(
                f"several programs, and kube-proxy does not say which is its: {found}"
            )
        chosen = held[0] if held else self._chosen or self._said(said)
        if chosen[0].trouble is not None:
            _raise_again(chosen[0])
        return chosen

    def _said(self, mode: str | None) -> tuple[Source, Mode]:
        """Where kube-proxy's mode would be, while the kernel holds nothing of any."""
        for source in self.sources.all:
            if source.trouble is not None and not isinstance(source.trouble, AbsentError):
                _raise_again(source)
        for source in self.sources.all:
            for possible, _ in source.programs:
                if possible == mode and source.trouble is None:
                    return source, possible
        raise AbsentError("the kernel holds no program of kube-proxy, and none says its mode")

    # --- in the thread --------------------------------------------------------------------------

    def _compare(
        self, source: Source, mode: Mode, wishes: Sequence[Wish], anew: bool, gap: bool
    ) -> Drift:
        with self.sources.lock:
            now = time.monotonic()
            if anew:
                self._comparison = self._begin(source, mode)
            comparison = self._comparison
            if comparison is None:
                raise BrokenError("nothing to compare with")
            touched = comparison.follow(now)
            if source.committed is not None and not gap and not anew:
                self._latency.commit(touched, source.committed)
            elif touched:
                self._latency.forget()
            waiting = self._put(comparison, wishes, now)
            for wish in waiting:
                self._latency.expect(wish.key, wish.triggers)
            self._latency.settle(comparison.agrees, comparison.ports_of)
            if self._traffic is not None:
                self._traffic.take(comparison, source.traffic)
            confirmed = now if source.confirmed is None else source.confirmed
            report = comparison.report(confirmed, self.settings.top_services)
            source.doubted = comparison.ripens(confirmed)
        return self._record(source, report)

    def _begin(self, source: Source, mode: Mode) -> Comparison:
        self._latency.forget()
        self._local.clear()
        if mode != "iptables":
            self._traffic = None
        elif self._traffic is None:
            self._traffic = ServiceTraffic(self.settings.top_services)
        programs = {
            family: program for (of, family), program in source.programs.items() if of == mode
        }
        for program in programs.values():
            program.retell()
        grace = self.settings.drift_grace
        return Comparison(mode, programs, source.node_addresses, grace=grace)

    def _put(self, comparison: Comparison, wishes: Iterable[Wish], now: float) -> list[Wish]:
        """Take the API's wishes, and return those that the kernel has to follow."""
        new = []
        for wish in wishes:
            service = wish.service
            ports = desired_ports(service, wish.slices, self._place) if service else ()
            if comparison.put(wish.key, ports, now) and wish.triggers:
                new.append(wish)
            local = no_local_endpoints(service, ports) if service else ()
            if local:
                self._local[wish.key] = tuple(each.port for each in local)
            else:
                self._local.pop(wish.key, None)
        return new

    def _record(self, source: Source, report: Report) -> Drift:
        comparison, proxied = self._comparison, self._proxied
        if comparison is None or proxied is None:
            raise BrokenError("stopped meanwhile")
        commits = source.tells_commits
        return Drift(
            mode=comparison.mode,
            backend=source.backend,
            zone=self._place.zone,
            faults={fault.name.lower(): age for fault, age in report.faults.items()},
            services={"missing": report.missing_services, "orphaned": report.orphaned_services},
            endpoints={"missing": report.missing_endpoints, "stale": report.stale_endpoints},
            oldest=report.oldest,
            named=tuple(map(_disagreement, report.named)),
            unroutable=tuple(self._unroutable(report)),
            unroutable_services={
                Reason.NO_LOCAL_ENDPOINTS.value: len(self._local),
                NOT_PROGRAMMED: len(report.not_programmed),
                STALE_BACKENDS: len(report.stale),
            },
            undecided=source.doubted is not None,
            new_connections=self._traffic.connections if self._traffic else None,
            imbalance=self._traffic.imbalance if self._traffic else None,
            same_zone_ratio=comparison.same_zone_ratio if self._place.zone else None,
            since_change=self._latency.since_change.histogram() if commits else None,
            since_event=self._latency.since_event.histogram() if commits else None,
            watches=proxied.told(),
        )

    def _unroutable(self, report: Report) -> list[Unroutable]:
        """The ports in trouble, of each reason at most as many Services as have series."""
        reasons = {Kind.MISSING: NOT_PROGRAMMED, Kind.STALE_ENDPOINTS: STALE_BACKENDS}
        found = {
            Unroutable(each.port.namespace, each.port.service, each.port.port, reasons[each.kind])
            for each in report.named
            if each.kind in reasons and isinstance(each.port, PortKey)
        }
        local = sorted(self._local)[: self.settings.top_services]
        found.update(
            Unroutable(*key, port, Reason.NO_LOCAL_ENDPOINTS.value)
            for key in local
            for port in self._local[key]
        )
        return sorted(found)


def _disagreement(each: Drifting) -> Disagreement:
    known = each.port if isinstance(each.port, PortKey) else PortKey("", "", "", "", "ipv4")
    return Disagreement(
        kind=each.kind.value,
        namespace=known.namespace,
        service=known.service,
        port=known.port,
        held=each.port if isinstance(each.port, str) else "",
        age=each.age,
        endpoints=each.endpoints,
    )


def _raise_again(source: Source) -> None:
    """Raise what a source's last read ended with, as the comparison's own."""
    trouble = source.trouble
    kind = type(trouble) if isinstance(trouble, AbsentError | DeniedError) else BrokenError
    raise kind(f"{source.backend}: {trouble}")
