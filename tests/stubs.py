"""Collectors that do as a test tells them, and waiting for what they cause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.settings import Settings
from vipscope.snapshot import Conntrack, Record

RECORD = Conntrack(entries=7, limit=100, buckets=50, statistics={"drop": 3})


class Stub(Collector):
    """A collector whose read is the test's own function, given the collector."""

    name = "conntrack"
    interval = 0.01
    closed = False

    def __init__(self, read: Callable[[Stub], Awaitable[Record]]) -> None:
        super().__init__(Settings(), Budget(1.0))
        self._read = read

    async def read(self) -> Record:
        return await self._read(self)

    async def close(self) -> None:
        await super().close()
        self.closed = True


def stub(name: str, read: Callable[[Stub], Awaitable[Record]], *, timeout: float = 10.0) -> Stub:
    kind = type(f"Stub_{name}", (Stub,), {"name": name, "timeout": timeout})
    made: Stub = kind(read)
    return made


async def healthy(_: Stub) -> Record:
    return RECORD


async def hangs(_: Stub) -> Record:
    await asyncio.Event().wait()
    raise AssertionError("an event that nobody sets")


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - whatever it is, it has no event
            await asyncio.sleep(0.005)


def burn(cpu_seconds: float) -> None:
    """Use this thread's CPU."""
    start = time.thread_time()
    while time.thread_time() - start < cpu_seconds:
        pass
