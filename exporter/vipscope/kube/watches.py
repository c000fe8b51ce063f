"""Reflectors that run together: until each has listed once, nothing is known; after that, all is.

A watch that broke leaves what it had told, which stays true while the API server, through which
alone it could change, is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

from vipscope.kube.client import Client
from vipscope.kube.errors import Reason
from vipscope.kube.meter import Meter
from vipscope.kube.reflector import Change, Handler, Reflector
from vipscope.kube.resources import Resource, T
from vipscope.kube.store import Several
from vipscope.snapshot import BrokenError, DeniedError, Watch


class Watches:
    """Reflectors of one server, from `start` to `close`."""

    def __init__(self, kubeconfig: Path | None, meter: Meter) -> None:
        self._client = Client(kubeconfig)
        self._meter = meter
        self._stir = asyncio.Event()
        """See `stirred`."""
        self._reflectors: list[Reflector[Any]] = []
        self._tasks: list[asyncio.Task[Any]] = []

    def add(self, resource: Resource[T], *handlers: Handler[T]) -> Reflector[T]:
        """A reflector that tells these handlers, in order."""
        handler = Several(*handlers, _Listed[T](self._stir))
        reflector = Reflector(self._client, resource, handler, sleep=self._pause)
        self._reflectors.append(reflector)
        return reflector

    def start(self) -> None:
        """Begin to watch."""
        for each in self._reflectors:
            self.accompany(self._meter.run(each.run), each.resource.name)

    def accompany(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        """Run something that ends with the watches."""
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(lambda _: self._stir.set())
        self._tasks.append(task)

    async def close(self) -> None:
        """End all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def ended(self) -> bool:
        """Whether a watch has ended for good: a bug, for nothing else ends one."""
        return any(task.done() for task in self._tasks)

    async def stirred(self) -> None:
        """Return when a list came, a watch ended, or one begins to wait for its next attempt."""
        self._stir.clear()
        await self._stir.wait()

    async def listed(self) -> None:
        """Return once all have listed.

        Raises DeniedError or BrokenError when that does not come about, BrokenError also when a
        watch has ended for good.
        """
        while not all(each.synced for each in self._reflectors):
            self._check()
            await self.stirred()
        self._check()

    def told(self) -> Mapping[str, Watch]:
        """How the watches fare, by resource."""
        return {
            each.resource.name: Watch(
                restarts={reason.value: count for reason, count in each.restarts.items()},
                last_event=each.last_event or 0.0,
                objects=len(each.objects),
            )
            for each in self._reflectors
        }

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
