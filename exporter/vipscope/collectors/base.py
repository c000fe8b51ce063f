"""What a collector is.

A collector reads one part of the node and returns a frozen record. It knows nothing of Prometheus,
of the scheduler's clock or of other collectors: what one keeps for another is in `Sources`. `read`
raises `AbsentError`, `DeniedError` or any other exception; the runner turns each into an outcome.
"""

from __future__ import annotations

import abc
import asyncio
from typing import ClassVar

from vipscope.budget import Budget
from vipscope.kube.client import NOWHERE, is_known
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, Record
from vipscope.sources import Sources
from vipscope.worker import Worker


class Collector(abc.ABC):
    """One subsystem's reader. One read at a time; blocking work goes through `self.worker`."""

    name: ClassVar[str]
    """Its name in flags and labels."""
    interval: ClassVar[float]
    """Seconds between reads."""
    timeout: ClassVar[float] = 10.0
    """Seconds after which a read counts as hung."""

    def __init__(self, settings: Settings, budget: Budget, sources: Sources | None = None) -> None:
        self.settings = settings
        self.budget = budget
        self.sources = sources or Sources()
        """What the kernel's readers share with the comparison; its own when nobody else has any."""
        self.worker = Worker(self.name)

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds that all reads have cost so far."""
        return self.worker.cpu_seconds

    @abc.abstractmethod
    async def read(self) -> Record:
        """Read the node. Raises ReadError subclasses, or anything: then the outcome is failed."""

    def require_api(self) -> None:
        """Raise AbsentError where no API server is known: neither a pod's nor a kubeconfig's."""
        if not is_known(self.settings.kubeconfig):
            raise AbsentError(NOWHERE)

    async def due(self) -> None:
        """Return when the next read is worth its cost: after the interval, or on a change."""
        await asyncio.sleep(self.interval)

    async def close(self) -> None:
        """Give back sockets and files. The worker thread is a daemon and may still hang."""
        self.worker.stop()
