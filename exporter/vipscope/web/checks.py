"""Checks of credentials that cost something: a few at a time, the same one once for all who ask."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class BusyError(Exception):
    """More checks wait than are allowed."""


class Checks(Generic[T]):
    """Runs checks, `at_once` of them, while at most `waiting` wait, few of them for one peer."""

    def __init__(self, at_once: int, waiting: int, waiting_of_peer: int) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._limit = at_once + waiting
        self._limit_of_peer = waiting_of_peer
        self._running: dict[Hashable, asyncio.Task[T]] = {}
        self._of_peer: Counter[str] = Counter()

    async def run(self, key: Hashable, peer: str, check: Callable[[], Awaitable[T]]) -> T:
        """What `check` returns, or raises. Raises BusyError when it would have to wait too long.

        `key` says what is checked, and `peer` is the address of who asks for it. A check that is
        under way goes on when who asked for it hangs up: it has been paid for.
        """
        task = self._running.get(key)
        if task is None:
            if len(self._running) >= self._limit or self._of_peer[peer] >= self._limit_of_peer:
                raise BusyError
            task = asyncio.create_task(self._run(key, peer, check))
            self._running[key] = task
            self._of_peer[peer] += 1
        return await asyncio.shield(task)

    async def _run(self, key: Hashable, peer: str, check: Callable[[], Awaitable[T]]) -> T:
        try:
            async with self._slots:
                return await check()
        finally:
            del self._running[key]
            self._of_peer[peer] -= 1
            if not self._of_peer[peer]:
                del self._of_peer[peer]
