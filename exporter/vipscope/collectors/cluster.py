"""cluster: what the API server says of Services, EndpointSlices and Pods.

Unlike the other collectors' reads, a watch goes on between two reads: a read tells what it knows.
Therefore an API server that goes away later is not a failed read. What was seen stays, as the
cluster itself stays as it was, and `vipscope_watch_last_event_timestamp_seconds` tells since when.
Withholding the series would clear every alert about a Service just when nobody can mend it.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import uuid
from typing import TYPE_CHECKING, NoReturn

from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.kube.meter import Meter
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, Cluster
from vipscope.sources import Sources

if TYPE_CHECKING:
    from vipscope.kube.lease import Lease
    from vipscope.kube.overview import Overview

COALESCE = 1.0
"""Seconds that a read waits after a change for more of them."""


class ClusterCollector(Collector):
    """Watches the API server from the first read on.

    Absent where none is known. Denied or failed until every resource was listed once.
    """

    name = "cluster"
    interval = 10.0

    def __init__(self, settings: Settings, budget: Budget, sources: Sources | None = None) -> None:
        super().__init__(settings, budget, sources)
        self._meter = Meter()
        self._overview: Overview | None = None
        self._lease: Lease | None = None
        """None: there is no other replica."""
        self._leasing: asyncio.Task[NoReturn] | None = None

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of watches and reads so far; a first list's decoding, in a thread, is not."""
        return self._meter.cpu_seconds

    async def read(self) -> Cluster:
        """What the watches have told.

        Raises AbsentError, also while another replica is the active one, DeniedError or
        BrokenError; after that a watch that had ended for good is started anew by the next read.
        """
        if self._overview is None:
            self._overview = self._start()
        try:
            record = await self._meter.run(self._overview.read)
        finally:
            if self._overview.ended:
                await self._end()
        if self._lease is not None:
            await self._check_lease(self._lease)
        return record

    async def due(self) -> None:
        """Return soon after a change, at the latest after the interval.

        Past the budget changes wait for the interval, too: one read then pays for all of them. That
        another replica is the active one now, or this one, waits for nothing.
        """
        if self._lease is None:
            await self._change()
            return
        change = asyncio.create_task(self._change())
        lease = asyncio.create_task(self._lease.changed.wait())
        try:
            await asyncio.wait((change, lease), return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
            lease.cancel()

    async def _change(self) -> None:
        if self._overview is None or not self.budget.solvent():
            await asyncio.sleep(self.interval)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.interval - COALESCE):
                await self._overview.changed()
        await asyncio.sleep(COALESCE)

    async def close(self) -> None:
        """End the watches, and give the Lease to another replica."""
        await self._end()
        if self._leasing is not None:
            self._leasing.cancel()
        if self._lease is not None:
            await self._lease.release()
        await super().close()

    def _start(self) -> Overview:
        self.require_api()
        # Only here: importing it takes memory that no other role should pay for.
        from vipscope.kube.overview import Overview
        from vipscope.kube.resolver import Resolver

        overview = Overview(
            self.settings.kubeconfig,
            top_services=self.settings.top_services,
            pending_after=self.settings.pending_after,
            resolver=Resolver() if self.settings.resolve_external_names else None,
            meter=self._meter,
        )
        overview.start()
        if self.settings.lease and self._lease is None:
            self._lease = self._start_lease(*self.settings.lease.split("/"))
        return overview

    def _start_lease(self, namespace: str, name: str) -> Lease:
        from vipscope.kube.lease import Lease, Writer

        # In a pod the host's name is the pod's; the rest tells replicas on one host apart.
        identity = f"{platform.node()}_{uuid.uuid4()}"
        lease = Lease(Writer(self.settings.kubeconfig), namespace, name, identity)
        self._leasing = asyncio.create_task(lease.run(), name="lease")
        return lease

    @staticmethod
    async def _check_lease(lease: Lease) -> None:
        """Raise what keeps this replica from being the active one.

        It watches all the same: so it knows everything when it becomes that, counts nothing anew
        and has missed nothing.
        """
        await lease.attempted.wait()
        lease.changed.clear()
        if lease.held:
            return
        if lease.trouble:
            raise BrokenError(f"lease: {lease.trouble}")
        raise AbsentError(f"on standby: {lease.holder or 'nobody yet'} holds the lease")

    async def _end(self) -> None:
        overview, self._overview = self._overview, None
        if overview is not None:
            await overview.close()
