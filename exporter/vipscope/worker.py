"""A daemon thread for one collector's blocking work.

Not a ThreadPoolExecutor: its threads are joined when the interpreter ends, so that a read stuck in
the kernel would hold up a stop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class BusyError(Exception):
    """The thread still hangs in earlier work."""


class Worker:
    """Runs functions one after another in its own thread and counts the CPU seconds they take."""

    def __init__(self, name: str) -> None:
        self.cpu_seconds = 0.0
        """CPU seconds of all functions run so far."""
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy = False

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)` in the thread. Raises what it raises, BusyError while one hangs."""
        if self._busy:
            raise BusyError("the last read has not come back")
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._busy = True

        def deliver(result: T | None, error: BaseException | None) -> None:
            self._busy = False
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]
            else:
                future.set_exception(error)

        def work() -> None:
            before = time.thread_time()
            result, error = None, None
            try:
                result = function(*arguments)
            except BaseException as caught:  # noqa: BLE001 - handed to whoever awaits
                error = caught
            self.cpu_seconds += time.thread_time() - before
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver, result, error)

        self._queue.put(work)
        return await future

    def stop(self) -> None:
        """Let the thread end after its present work."""
        self._queue.put(None)

    def _loop(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
