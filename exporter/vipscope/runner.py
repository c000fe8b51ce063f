"""One guarded task per collector: when it reads, how the read ended, what it cost.

No collector can harm another: a read that raises, hangs or is refused is an outcome of that
collector alone, and its series are withheld until it reads again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.history import History
from vipscope.snapshot import Node, Outcome, ReadError, Reading, Reload, Snapshot
from vipscope.worker import BusyError

STOP_LIMIT = 1.0
"""Seconds that the collectors together have to end, and then to close."""

ANYTHING = (Exception, asyncio.CancelledError, SystemExit)
"""What a collector may raise. Not GeneratorExit, with which Python itself ends a coroutine."""

log = logging.getLogger(__name__)


class Runner:
    """Runs the collectors and holds the newest snapshot, and a few numbers of the last hour."""

    def __init__(
        self,
        node: Node,
        collectors: Sequence[Collector],
        disabled: Sequence[str],
        budget: Budget,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.snapshot = Snapshot(node)
        self.history = History()
        self._collectors = collectors
        self._budget = budget
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._replaced = asyncio.Event()
        """Set when the present snapshot is replaced; the next one has another."""
        for name in disabled:
            self._publish(name, Reading(Outcome.DISABLED))

    @property
    def waiting(self) -> tuple[str, ...]:
        """The enabled collectors that have not had a first outcome."""
        return tuple(
            each.name for each in self._collectors if each.name not in self.snapshot.readings
        )

    @property
    def ready(self) -> bool:
        """Whether each enabled collector has had a first outcome."""
        return not self.waiting

    async def replaced(self) -> None:
        """Return when there is another snapshot than now."""
        await self._replaced.wait()

    def start(self) -> None:
        """Start a task for each collector."""
        for each in self._collectors:
            self._tasks.append(asyncio.create_task(self._run(each), name=each.name))

    async def stop(self) -> None:
        """Stop all tasks and give back what the collectors hold. Waits for no read that hangs."""
        for task in self._tasks:
            task.cancel()
        await _settle(self._tasks)
        await _settle(
            [asyncio.create_task(each.close(), name=each.name) for each in self._collectors]
        )

    async def _run(self, collector: Collector) -> None:
        previous: Reading | None = None
        # A read that swallows its cancellation does not keep the task alive.
        while not _stopping():
            reading = await self._read(collector, previous)
            self._log_change(collector.name, previous, reading)
            self._publish(collector.name, reading)
            previous = reading
            try:
                await collector.due()
            except ANYTHING as error:
                if _stopping():
                    raise
                # A broken wait must not become a busy loop.
                log.warning("%s: waiting for the next read failed: %r", collector.name, error)
                await asyncio.sleep(collector.interval)

    async def _read(self, collector: Collector, previous: Reading | None) -> Reading:
        started = time.monotonic()
        record, detail = None, ""
        try:
            async with asyncio.timeout(collector.timeout):
                record = await collector.read()
            outcome = Outcome.OK
        except (TimeoutError, BusyError) as error:
            outcome = Outcome.TIMEOUT
            detail = str(error) or f"no answer within {collector.timeout:g} s"
        except ReadError as error:
            outcome, detail = error.outcome, str(error)
        except ANYTHING as error:
            if _stopping():
                raise
            outcome, detail = Outcome.FAILED, f"{type(error).__name__}: {error}"
            log.debug("%s: read failed", collector.name, exc_info=True)
        duration = time.monotonic() - started
        # From the last reading and not from the start of this one: what a read that hung, or the
        # wait between two reads, has cost since is charged too.
        cpu_seconds = collector.cpu_seconds
        self._budget.spend(cpu_seconds - (previous.cpu_seconds if previous else 0.0))
        if outcome is Outcome.OK:
            last_success: float | None = self._clock()
        else:
            last_success = previous.last_success if previous else None
        return Reading(
            outcome=outcome,
            detail=detail,
            duration=duration,
            cpu_seconds=cpu_seconds,
            last_success=last_success,
            record=record,
        )

    def publish_reload(self, reload: Reload) -> None:
        """Say how the web configuration file was last read."""
        self.snapshot = self.snapshot.with_reload(reload)

    def _publish(self, name: str, reading: Reading) -> None:
        self.history.replaced(self.snapshot, self._clock())
        self.snapshot = self.snapshot.with_reading(name, reading)
        self._replaced.set()
        self._replaced = asyncio.Event()

    @staticmethod
    def _log_change(name: str, previous: Reading | None, reading: Reading) -> None:
        if previous is not None and reading.outcome is previous.outcome:
            return
        expected = reading.outcome in (Outcome.OK, Outcome.ABSENT)
        detail = reading.detail or f"read in {reading.duration:.3f} s"
        log.log(
            logging.INFO if expected else logging.WARNING,
            "%s: %s: %s",
            name,
            reading.outcome,
            detail,
        )


def _stopping() -> bool:
    """Whether the current task itself is being cancelled, and not only what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _settle(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for the tasks to end, for STOP_LIMIT at most, and log how they failed."""
    if not tasks:
        return
    _, hung = await asyncio.wait(tasks, timeout=STOP_LIMIT)
    for task in tasks:
        if task in hung:
            log.warning("%s: does not stop", task.get_name())
        elif not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s: stopped badly: %r", task.get_name(), error)
