"""The prober as a collector: a read lasts a while, in which it probes."""

from __future__ import annotations

import asyncio
import random
import time

from vipscope.collectors.base import Collector
from vipscope.probe.prober import Prober
from vipscope.snapshot import AbsentError, Probes


class ProbeCollector(Collector):
    """Connects to the targets in the settings. Absent when there are none.

    It sends packets and changes nothing of the node. No privilege is needed.
    """

    name = "probe"
    interval = 2.0

    _again_at = 0.0
    """When, by the monotonic clock, the next read is due."""
    _prober: Prober | None = None

    async def read(self) -> Probes:
        """Probe for an interval. All that has been measured since the start."""
        self._again_at = time.monotonic() + self.interval
        if not self.settings.probe_targets:
            raise AbsentError("there is no target: --probe.target names one")
        if self._prober is None:
            self._prober = Prober(
                self.settings.probe_targets,
                self.settings.probe_interval,
                self.settings.probe_timeout,
                random.Random(),  # noqa: S311 - no secret, and nobody else's sequence
            )
        return await self.worker.run(self._prober.work, self._again_at)

    async def due(self) -> None:
        """At once: a read takes the interval by itself, unless it failed before its time."""
        await asyncio.sleep(max(0.0, self._again_at - time.monotonic()))

    async def close(self) -> None:
        """Stop probing and give back the sockets, in the thread, which nobody waits for."""
        if self._prober is None:
            await super().close()
            return
        self._prober.stop()
        self.worker.stop(self._prober.close)
