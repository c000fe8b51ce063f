"""cluster: what the API server says of Services, EndpointSlices and Pods.

Unlike the other collectors' reads, a watch goes on between two reads: a read tells what it knows.
Therefore an API server that goes away later is not a failed read. What was seen stays, as the
cluster itself stays as it was, and `vipscope_watch_last_event_timestamp_seconds` tells since when.
Withholding the series would clear every alert about a Service just when nobody can mend it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.kube.meter import Meter
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, Cluster

if TYPE_CHECKING:
    from vipscope.kube.overview import Overview

COALESCE = 1.0
"""Seconds that a read waits after a change for more of them."""


class ClusterCollector(Collector):
    """Watches the API server from the first read on.

    Absent where none is known. Denied or failed until every resource was listed once.
    """

    name = "cluster"
    interval = 10.0

    def __init__(self, settings: Settings, budget: Budget) -> None:
        super().__init__(settings, budget)
        self._meter = Meter()
        self._overview: Overview | None = None

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of watches and reads so far; a first list's decoding, in a thread, is not."""
        return self._meter.cpu_seconds

    async def read(self) -> Cluster:
        """What the watches have told.

        Raises AbsentError, DeniedError or BrokenError; in the last case it starts anew with the
        next read if a watch had ended for good.
        """
        if self._overview is None:
            self._overview = self._start()
        try:
            return await self._meter.run(self._overview.read)
        finally:
            if self._overview.ended:
                await self._end()

    async def due(self) -> None:
        """Return soon after a change, at the latest after the interval.

        Past the budget changes wait for the interval, too: one read then pays for all of them.
        """
        if self._overview is None or not self.budget.solvent():
            await asyncio.sleep(self.interval)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.interval - COALESCE):
                await self._overview.changed()
        await asyncio.sleep(COALESCE)

    async def close(self) -> None:
        """End the watches."""
        await self._end()
        await super().close()

    def _start(self) -> Overview:
        if self.settings.kubeconfig is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise AbsentError("not in a cluster, and no --kubeconfig is given")
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
        return overview

    async def _end(self) -> None:
        overview, self._overview = self._overview, None
        if overview is not None:
            await overview.close()
