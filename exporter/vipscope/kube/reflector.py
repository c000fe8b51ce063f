"""The objects of one resource, as the API server has them: a list, kept up to date by a watch.

Whatever goes wrong ends the connection; after a pause the watch goes on from the last version that
was seen, and only when the server has forgotten that one comes another list. Objects that were seen
stay meanwhile, however long the server is away.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, NoReturn, Protocol

from vipscope.cluster import ObjectMeta
from vipscope.kube.backoff import Backoff
from vipscope.kube.client import Client, Connection
from vipscope.kube.errors import ApiError, Reason
from vipscope.kube.resources import Resource, T
from vipscope.kube.wire import Decoder, Deleted, Item, Lines, Page, Progress, Written

PAGE_SIZE = 500
"""Objects asked for at a time, as kubectl does. A server may send more."""
MOST_PAGES = 2000
"""A list of more pages than these million objects has no end."""
LIST_LIMIT = 256 << 20
"""Bytes of a page; a whole list, when the server does not cut it into pages."""
LIST_IDLE = 60.0
"""Seconds without a byte of a list. The server itself gives up after so many."""
WATCH_IDLE = 150.0
"""Seconds without a byte of a watch. A bookmark comes about every minute."""
WATCH_SECONDS = 300.0
"""A watch is asked to last between this and twice this, as client-go's are."""

FROM_CACHE = "0"
"""The version that asks for a list of whatever age, from the server's memory."""
FROM_STORE = ""
"""The version that asks for the newest list, from etcd."""

Key = tuple[str, str]
"""Namespace and name."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One object was added (no old), deleted (no new) or modified."""

    old: T | None
    new: T | None
    size: int
    """Bytes of the event, or of the object in a list; 0 when a list lacked the object."""


class Handler(Protocol[T]):
    """Is told of every change exactly once. What it raises ends the reflector."""

    def listed(self, changes: Sequence[Change[T]], *, first: bool) -> None:
        """What a list has changed, all at once: on the first one, every object is new."""

    def changed(self, change: Change[T]) -> None:
        """What an event has changed."""


class Reflector(Generic[T]):
    """Lists and watches one resource until cancelled, which may be at any time."""

    def __init__(
        self,
        client: Client,
        resource: Resource[T],
        handler: Handler[T],
        *,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.resource = resource
        self.last_event: float | None = None
        """Unix time of the last list, event or bookmark."""
        self._heard = -math.inf
        """The same by the clock, which nobody sets."""
        self.skipped = 0
        """Objects so far that could not be decoded and are therefore not known, or known as they
        were before."""
        self.restarts: collections.Counter[Reason] = collections.Counter()
        """How often, by reason, the watch had to start anew."""
        self._client = client
        self._handler = handler
        self._decoder = Decoder(resource.type)
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._sleep = sleep
        self._objects: dict[Key, T] = {}
        self._version = ""
        """The newest resourceVersion seen, "" before the first list."""
        self._must_list = True
        self._distrusts_cache = False
        """The last list failed for its version: the next one is of etcd, and in one piece."""
        self._complained_of: Reason | None = None
        """What was logged since the last sign of life: once is enough for a long absence."""

    @property
    def objects(self) -> Mapping[Key, T]:
        """All objects as they are now; a view that changes with them."""
        return MappingProxyType(self._objects)

    @property
    def synced(self) -> bool:
        """Whether there has been a list: without one, no objects means nothing."""
        return bool(self._version)

    @property
    def silence(self) -> float:
        """Seconds since the last list, event or bookmark; infinite before the first."""
        return self._clock() - self._heard

    async def run(self) -> NoReturn:
        """List and watch for ever."""
        while True:
            started = self._clock()
            try:
                async with self._client.connect() as connection:
                    if self._must_list:
                        await self._list(connection)
                    started = self._clock()
                    await self._watch(connection)
            except ApiError as error:
                self._note(error)
                delay = self._backoff.delay(self._clock() - started) + error.retry_after
            await self._sleep(delay)

    def _note(self, error: ApiError) -> None:
        """Count the end of a connection and remember what it means for the next one."""
        self.restarts[error.reason] += 1
        if error.reason in (Reason.EXPIRED, Reason.BEHIND):
            self._distrusts_cache = self._must_list
            self._must_list = True
        known = error.reason in (Reason.CLOSED, self._complained_of)
        self._complained_of = error.reason
        level = logging.DEBUG if known else logging.WARNING
        log.log(level, "%s: watch ended (%s): %s", self.resource.name, error.reason, error)

    def _note_life(self) -> None:
        self.last_event, self._heard = time.time(), self._clock()
        self._complained_of = None

    # --- list ---

    async def _list(self, connection: Connection) -> None:
        """Replace all objects by those of a list, and tell the handler what that changes."""
        version = FROM_STORE if self._distrusts_cache else self._version or FROM_CACHE
        query = {"resourceVersion": version}
        if not self._distrusts_cache:
            query["limit"] = str(PAGE_SIZE)
        items: list[Item[T]] = []
        skipped = 0
        tokens: set[str] = set()
        while True:
            page = await self._page(connection, query)
            items += page.items
            skipped += page.skipped
            if not page.token:
                break
            if page.token in tokens or len(tokens) == MOST_PAGES:
                raise ApiError(Reason.MALFORMED, "the list has no end")
            tokens.add(page.token)
            query = {"limit": str(PAGE_SIZE), "continue": page.token}
        if version and _is_older(page.version, self._version):
            text = f"the list is of version {page.version}, {self._version} was seen"
            raise ApiError(Reason.BEHIND, text)
        first = not self.synced
        changes = self._replace(items)
        self._version = page.version
        self._must_list = self._distrusts_cache = False
        self.skipped += skipped
        self._note_life()
        self._handler.listed(changes, first=first)

    async def _page(self, connection: Connection, query: dict[str, str]) -> Page[T]:
        async with connection.get(
            self.resource.path, self._selectors | query, idle=LIST_IDLE
        ) as response:
            body = await response.read(LIST_LIMIT)
        # In a thread: a large page takes long enough to be felt in a scrape.
        return await asyncio.to_thread(self._decoder.page, body)

    def _replace(self, items: Sequence[Item[T]]) -> list[Change[T]]:
        """Make `items` all that there is. Returns how they differ from what there was."""
        gone = self._objects
        self._objects = {}
        changes: list[Change[T]] = []
        for item in items:
            key = _key(item.object.metadata)
            known = gone.pop(key, None)
            difference = _difference(known, item.object, item.size)
            changes += difference
            # The one that the handler already knows, if it is the same.
            self._objects[key] = item.object if difference or known is None else known
        return [Change(known, None, 0) for known in gone.values()] + changes

    # --- watch ---

    async def _watch(self, connection: Connection) -> NoReturn:
        """Follow the changes since the last version. Always ends by raising ApiError."""
        seconds = self._backoff.draw.uniform(WATCH_SECONDS, 2 * WATCH_SECONDS)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(seconds)),
        }
        started = self._clock()
        lines = Lines()
        events = 0
        async with connection.get(
            self.resource.path, self._selectors | query, idle=WATCH_IDLE
        ) as response:
            while chunk := await response.chunk():
                for line in lines.feed(chunk):
                    self._event(line)
                    events += 1
        if lines.unfinished:
            raise ApiError(Reason.TRUNCATED, f"half a line of {lines.unfinished} bytes at the end")
        lasted = self._clock() - started
        if not events and lasted < WATCH_SECONDS:
            raise ApiError(Reason.EMPTY, f"200 and no event within {lasted:.1f} s")
        raise ApiError(Reason.CLOSED, f"{events} events within {lasted:.1f} s")

    def _event(self, line: bytes) -> None:
        event = self._decoder.event(line)
        self._note_life()
        match event:
            case Written(new):
                key = _key(new.metadata)
                changes = _difference(self._objects.get(key), new, len(line))
                if changes:
                    self._objects[key] = new
            case Deleted(metadata):
                old = self._objects.pop(_key(metadata), None)
                changes = [] if old is None else [Change(old, None, len(line))]
            case Progress():
                self.skipped += event.skipped
                changes = []
        self._version = event.version or self._version
        for change in changes:
            self._handler.changed(change)

    @property
    def _selectors(self) -> dict[str, str]:
        selectors = {
            "labelSelector": self.resource.label_selector,
            "fieldSelector": self.resource.field_selector,
        }
        return {name: selector for name, selector in selectors.items() if selector}


def _difference(old: T | None, new: T, size: int) -> list[Change[T]]:
    """What it takes to get from `old` to `new`: nothing when they are the same version.

    An object of the same name and another uid is another one: that the old one went was missed.
    """
    if old is None:
        return [Change(None, new, size)]
    if old.metadata.uid != new.metadata.uid:
        return [Change(old, None, 0), Change(None, new, size)]
    if old.metadata.resource_version == new.metadata.resource_version:
        return []
    return [Change(old, new, size)]


def _key(metadata: ObjectMeta) -> Key:
    return metadata.namespace, metadata.name


def _is_older(version: str, than: str) -> bool:
    """Whether one resourceVersion is older than another; False when they cannot be compared."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
