"""What coroutines cost on the event loop."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

R = TypeVar("R")


class Meter:
    """Counts the CPU seconds of the coroutines that it runs, without what runs while they wait."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0

    async def run(self, function: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Await `function()`."""
        return await self._steps(function())

    @types.coroutine
    def _steps(self, coroutine: Coroutine[Any, Any, R]) -> Generator[Any, Any, R]:
        """Do what `yield from coroutine` does, with a look at the clock before and after a step."""
        step: Callable[[Any], Any] = coroutine.send
        argument: Any = None
        while True:
            before = time.thread_time()
            try:
                awaited = step(argument)
            except StopIteration as end:
                result: R = end.value
                return result
            finally:
                self.cpu_seconds += time.thread_time() - before
            try:
                step, argument = coroutine.send, (yield awaited)
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 - the coroutine's to handle, not ours
                step, argument = coroutine.throw, error
