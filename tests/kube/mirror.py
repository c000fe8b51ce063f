"""What the tests of reflectors have in common."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Generic

from tests import stubs
from tests.lab.apiserver import ApiServer, Object
from vipscope.kube.backoff import Backoff
from vipscope.kube.client import Client
from vipscope.kube.reflector import Change, Key, Reflector
from vipscope.kube.resources import Resource, T

until = functools.partial(stubs.until, seconds=30.0)
"""Wait until a condition holds, however busy the machine is. Raises TimeoutError."""


class Mirror(Generic[T]):
    """A handler that holds its own copy of the objects, and fails when told of a change that is
    none, was told before, or was preceded by one that it was not told of."""

    def __init__(self) -> None:
        self.objects: dict[Key, T] = {}
        self.lists: list[bool] = []
        """For each list whether it was the first."""
        self.changes: list[Change[T]] = []
        """Those of events."""
        self.kinds: Counter[str] = Counter()
        """Those of events and of lists but the first."""

    def listed(self, changes: Sequence[Change[T]], *, first: bool) -> None:
        self.lists.append(first)
        for change in changes:
            self._apply(change, counts=not first)

    def changed(self, change: Change[T]) -> None:
        self.changes.append(change)
        self._apply(change, counts=True)

    def _apply(self, change: Change[T], *, counts: bool) -> None:
        one = change.new or change.old
        assert one is not None
        key = (one.metadata.namespace, one.metadata.name)
        assert self.objects.get(key) is change.old
        if change.new is None:
            del self.objects[key]
            kind = "deleted"
        else:
            self.objects[key] = change.new
            kind = "added" if change.old is None else "modified"
            if change.old is not None:
                old = change.old.metadata
                assert old.uid == change.new.metadata.uid
                assert old.resource_version != change.new.metadata.resource_version
        if counts:
            self.kinds[kind] += 1


class Site(Generic[T]):
    """A reflector, its handler, and the delays that it took."""

    def __init__(
        self, client: Client, server: ApiServer, resource: Resource[T], *, pauses: int | None = None
    ) -> None:
        self.server = server
        self.resource = resource
        self.mirror = Mirror[T]()
        self.delays: list[float] = []
        self._pauses = pauses
        self.reflector = Reflector(
            client, resource, self.mirror, backoff=Backoff(), sleep=self._sleep
        )

    async def _sleep(self, delay: float) -> None:
        """Shorter than it should be; after so many pauses for ever."""
        self.delays.append(delay)
        if len(self.delays) == self._pauses:
            await asyncio.Event().wait()
        await asyncio.sleep(delay / 500)

    def versions(self) -> dict[Key, str]:
        """The version of every object that the server has."""
        objects: list[Object] = self.server.order("objects", resource=self.resource.name)
        return {
            (each["metadata"].get("namespace", ""), each["metadata"]["name"]): each["metadata"][
                "resourceVersion"
            ]
            for each in objects
        }

    def agrees(self) -> bool:
        """Whether reflector, handler and server have the same objects."""
        assert self.mirror.objects == self.reflector.objects
        known = {
            key: each.metadata.resource_version for key, each in self.reflector.objects.items()
        }
        return known == self.versions()

    async def settled(self) -> None:
        """Return when they have, and a watch is under way."""
        await until(lambda: self.reflector.synced and self.watched() and self.agrees())

    def watched(self) -> bool:
        return bool(self.server.order("watchers", resource=self.resource.name))


@asynccontextmanager
async def running(site: Site[T]) -> AsyncIterator[Site[T]]:
    """Run the site's reflector meanwhile. Its own failure is the test's."""
    task = asyncio.create_task(site.reflector.run())
    try:
        yield site
    finally:
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
