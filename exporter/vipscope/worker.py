"""A daemon thread for one collector's blocking work.

Not a ThreadPoolExecutor: its threads are joined when the interpreter ends, so that a read stuck in
the kernel would hold up a stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 128 * 1024
"""Bytes of a block that goes back to the system as soon as it is freed: where glibc begins."""


class BusyError(Exception):
    """The thread still hangs in earlier work."""


class Worker:
    """Runs functions one after another in its own thread and counts the CPU seconds they take."""

    def __init__(self, name: str) -> None:
        self.cpu_seconds = 0.0
        """CPU seconds of all functions that have come back so far."""
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy = False

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)` in the thread. Raises what it raises, BusyError while one hangs.

        What is not an Exception, and would end a task or the event loop, comes as a RuntimeError.
        """
        if self._busy:
            raise BusyError("the last read has not come back")
        if self._thread is None:
            _give_back_large_blocks()
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish(settle: Callable[[Any], None], outcome: Any) -> None:
            self._busy = False
            if not future.cancelled():
                settle(outcome)

        def work() -> None:
            before = time.thread_time()
            done: tuple[Callable[[Any], None], Any]
            try:
                done = (future.set_result, function(*arguments))
            except BaseException as caught:  # noqa: BLE001 - handed to whoever awaits
                done = (future.set_exception, _ordinary(caught))
            self.cpu_seconds += time.thread_time() - before
            # The loop may have gone away meanwhile; then nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish, *done)

        self._busy = True
        self._queue.put(work)
        return await future

    def stop(self, last: Callable[[], None] | None = None) -> None:
        """Let the thread end after its present work, and after `last`, which must not raise."""
        if last is not None:
            self._queue.put(last)
        self._queue.put(None)

    def _loop(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            # Held on to until the next work comes, it would keep alive what it returned.
            del work


def _give_back_large_blocks() -> None:
    """Have the process keep none of the memory that a read needed for its lists.

    Left alone, glibc keeps ever larger blocks: up to the size of the largest that was freed, and of
    a thread's arena twice as much. Another C library may not know the call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _ordinary(error: BaseException) -> Exception:
    """`error` as an exception that a future takes and a task survives."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
