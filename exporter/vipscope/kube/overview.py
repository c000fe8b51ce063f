"""The whole cluster's Services, by three watches: Services, EndpointSlices and Pods."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NoReturn

from vipscope.dataplane.top import Top
from vipscope.kube.census import Census
from vipscope.kube.churn import REST, Churn
from vipscope.kube.meter import Meter
from vipscope.kube.pods import LEAN_PODS
from vipscope.kube.resolver import Resolver
from vipscope.kube.resources import PROXIED_SERVICES, PROXIED_SLICES
from vipscope.kube.store import Store
from vipscope.kube.troubles import Troubles
from vipscope.kube.watches import Watches
from vipscope.snapshot import Cluster


class Overview:
    """Watches from `start` to `close`, and between them says what it knows.

    How old that is, is part of the record.
    """

    def __init__(
        self,
        kubeconfig: Path | None,
        *,
        top_services: int,
        pending_after: float,
        resolver: Resolver | None,
        meter: Meter,
    ) -> None:
        store, self._census = Store(), Census()
        self._churn = Churn(Top(top_services, store.services, REST))
        self._troubles = Troubles(store, pending_after)
        self._resolver = resolver
        """None: names are not looked up."""
        self._watches = Watches(kubeconfig, meter)
        self._services = self._watches.add(
            PROXIED_SERVICES, store.for_services, self._census.for_services
        )
        self._watches.add(PROXIED_SLICES, store.for_slices, self._census.for_slices, self._churn)
        self._watches.add(LEAN_PODS, store.for_pods)

    def start(self) -> None:
        """Begin to watch."""
        self._watches.start()
        if self._resolver is not None:
            self._watches.accompany(self._resolve_names(self._resolver), "resolver")

    async def close(self) -> None:
        """End all watches."""
        await self._watches.close()
        if self._resolver is not None:
            self._resolver.close()

    @property
    def ended(self) -> bool:
        """Whether a watch has ended for good: a bug, for nothing else ends one."""
        return self._watches.ended

    async def changed(self) -> None:
        """Return when there is something new to judge."""
        await self._troubles.changes.pending.wait()

    async def read(self) -> Cluster:
        """What is known, once all was listed. Raises as `Watches.listed` does."""
        await self._watches.listed()
        await self._troubles.judge(time.time())
        return self._record()

    def _record(self) -> Cluster:
        census, churn, troubles = self._census, self._churn, self._troubles
        return Cluster(
            services=dict(census.types),
            session_affinity=census.affine,
            traffic_policies=dict(census.policies),
            topology=dict(census.topology),
            slices=dict(census.slices),
            slice_endpoints=census.slice_endpoints,
            endpoints=dict(census.endpoints),
            slice_events=dict(churn.events),
            slice_event_bytes=churn.bytes,
            endpoint_changes=dict(churn.changes),
            service_changes=churn.by_service.counts,
            unroutable={
                (*service, port.port, port.reason.value): port.detail
                for service, ports in troubles.found.items()
                for port in ports
            },
            unroutable_services=dict(troubles.services()),
            watches=self._watches.told(),
        )

    async def _resolve_names(self, resolver: Resolver) -> NoReturn:
        while not self._services.synced:
            await self._watches.stirred()
        await resolver.follow(self._troubles.external_names, self._troubles.set_resolves)
