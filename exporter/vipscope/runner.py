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
from vipscope.snapshot import Node, Outcome, ReadError, Reading, Snapshot
from vipscope.worker import BusyError

log = logging.getLogger(__name__)


class Runner:
    """Runs the collectors and holds the newest snapshot."""

    def __init__(
        self,
        node: Node,
        collectors: Sequence[Collector],
        disabled: Sequence[str],
        budget: Budget,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.snapshot = Snapshot(node)
        self._collectors = collectors
        self._budget = budget
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        for name in disabled:
            self._publish(name, Reading(Outcome.DISABLED))

    @property
    def ready(self) -> bool:
        """Whether each enabled collector has had a first outcome."""
        return all(each.name in self.snapshot.readings for each in self._collectors)

    def start(self) -> None:
        """Start a task for each collector."""
        for each in self._collectors:
            self._tasks.append(asyncio.create_task(self._run(each), name=each.name))

    async def stop(self) -> None:
        """Stop all tasks and give back what the collectors hold. Does not wait for a hung read."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(each.close() for each in self._collectors), return_exceptions=True)

    async def _run(self, collector: Collector) -> None:
        previous = Reading(Outcome.FAILED)
        while True:
            reading = await self._read(collector, previous)
            self._log_change(collector.name, previous, reading)
            self._publish(collector.name, reading)
            previous = reading
            try:
                await collector.due()
            except Exception:
                # A broken wait must not become a busy loop.
                log.exception("%s: waiting for the next read failed", collector.name)
                await asyncio.sleep(collector.interval)

    async def _read(self, collector: Collector, previous: Reading) -> Reading:
        started, cpu_before = time.monotonic(), collector.cpu_seconds
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
        except Exception as error:
            outcome, detail = Outcome.FAILED, f"{type(error).__name__}: {error}"
            log.debug("%s: read failed", collector.name, exc_info=True)
        self._budget.spend(collector.cpu_seconds - cpu_before)
        return Reading(
            outcome=outcome,
            detail=detail,
            duration=time.monotonic() - started,
            cpu_seconds=collector.cpu_seconds,
            last_success=self._clock() if outcome is Outcome.OK else previous.last_success,
            record=record,
        )

    def _publish(self, name: str, reading: Reading) -> None:
        self.snapshot = self.snapshot.with_reading(name, reading)

    @staticmethod
    def _log_change(name: str, previous: Reading, reading: Reading) -> None:
        first = previous.duration is None
        if not first and reading.outcome is previous.outcome:
            return
        if reading.outcome in (Outcome.OK, Outcome.ABSENT):
            if not first:
                log.info("%s: %s again", name, reading.outcome)
        else:
            log.warning("%s: %s: %s", name, reading.outcome, reading.detail)
