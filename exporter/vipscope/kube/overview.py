"""The whole cluster's Services, by three watches: Services, EndpointSlices and Pods."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, NoReturn

from vipscope.cluster import EndpointSlice, Pod, Service
from vipscope.kube.census import Census
from vipscope.kube.churn import Churn, TopServices
from vipscope.kube.client import Client
from vipscope.kube.errors import Reason
from vipscope.kube.meter import Meter
from vipscope.kube.pods import LEAN_PODS
from vipscope.kube.reflector import Change, Handler, Reflector
from vipscope.kube.resolver import Resolver
from vipscope.kube.resources import PROXIED_SERVICES, PROXIED_SLICES, Resource, T
from vipscope.kube.store import Several, Store
from vipscope.kube.troubles import Troubles
from vipscope.snapshot import BrokenError, Cluster, DeniedError, Watch


class Overview:
    """Watches from `start` to `close`, and between them says what it knows.

    It knows nothing until each resource was listed once. From then on it always knows something: a
    watch that broke leaves what it had told, which stays true while the API server, through which
    alone it could change, is away. How old it is, is part of the record.
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
        self._client = Client(kubeconfig)
        self._meter = meter
        store, self._census = Store(), Census()
        self._churn = Churn(TopServices(top_services, store.services))
        self._troubles = Troubles(store, pending_after)
        self._resolver = resolver
        """None: names are not looked up."""
        self._stir = asyncio.Event()
        """Set when a first list came or a watch ended."""
        self._reflectors: tuple[Reflector[Service], Reflector[EndpointSlice], Reflector[Pod]] = (
            self._reflector(PROXIED_SERVICES, store.for_services, self._census.for_services),
            self._reflector(PROXIED_SLICES, store.for_slices, self._census.for_slices, self._churn),
            self._reflector(LEAN_PODS, store.for_pods),
        )
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self) -> None:
        """Begin to watch."""
        for each in self._reflectors:
            task = asyncio.create_task(self._meter.run(each.run), name=each.resource.name)
            task.add_done_callback(lambda _: self._stir.set())
            self._tasks.append(task)
        if self._resolver is not None:
            task = asyncio.create_task(self._resolve_names(self._resolver), name="resolver")
            self._tasks.append(task)

    async def close(self) -> None:
        """End all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._resolver is not None:
            self._resolver.close()

    @property
    def ended(self) -> bool:
        """Whether a watch has ended for good: a bug, for nothing else ends one."""
        return any(task.done() for task in self._tasks)

    async def changed(self) -> None:
        """Return when there is something new to judge."""
        await self._troubles.changes.pending.wait()

    async def read(self) -> Cluster:
        """What is known, once all was listed.

        Raises DeniedError or BrokenError when that does not come about, BrokenError also when a
        watch has ended for good, which is a bug.
        """
        while not all(each.synced for each in self._reflectors):
            self._check()
            self._stir.clear()
            await self._stir.wait()
        self._check()
        await self._troubles.judge(time.time())
        return self._record()

    def _check(self) -> None:
        """Raise what keeps the watches from being of use."""
        for task in self._tasks:
            if task.done():
                raise BrokenError(f"{task.get_name()} has ended: {task.exception()!r}")
        for each in self._reflectors:
            if not each.synced and each.restarts:
                times = ", ".join(f"{reason} {n}" for reason, n in each.restarts.items())
                denied = Reason.DENIED in each.restarts
                kind = DeniedError if denied else BrokenError
                raise kind(f"{each.resource.name} cannot be listed: {times}")

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
            unroutable=frozenset(
                (*service, port.port, port.reason.value)
                for service, ports in troubles.found.items()
                for port in ports
            ),
            unroutable_services=dict(troubles.services()),
            watches={each.resource.name: _watch(each) for each in self._reflectors},
        )

    def _reflector(self, resource: Resource[T], *handlers: Handler[T]) -> Reflector[T]:
        handler = Several(*handlers, _Listed[T](self._stir))
        return Reflector(self._client, resource, handler, sleep=self._pause)

    async def _resolve_names(self, resolver: Resolver) -> NoReturn:
        services, *_ = self._reflectors
        while not services.synced:
            self._stir.clear()
            await self._stir.wait()
        await resolver.follow(self._troubles.external_names, self._troubles.set_resolves)

    async def _pause(self, seconds: float) -> None:
        self._stir.set()
        await asyncio.sleep(seconds)


class _Listed(Generic[T]):
    """A handler that sets an event when a list came."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    def listed(self, changes: Sequence[Change[T]], *, first: bool) -> None:  # noqa: ARG002
        self._event.set()

    def changed(self, change: Change[T]) -> None:
        pass


def _watch(reflector: Reflector[Any]) -> Watch:
    return Watch(
        restarts={reason.value: count for reason, count in reflector.restarts.items()},
        last_event=reflector.last_event or 0.0,
        objects=len(reflector.objects),
    )
