"""One guarded task per collector: no collector can harm another."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.stubs import RECORD, Stub, burn, hangs, healthy, stub, until
from vipscope.budget import BURST, Budget
from vipscope.runner import Runner
from vipscope.snapshot import (
    AbsentError,
    BrokenError,
    DeniedError,
    Node,
    Outcome,
    Reading,
    Record,
)

NODE = Node("node-1", "6.1.0")


@asynccontextmanager
async def running(
    *collectors: Stub, disabled: Sequence[str] = (), budget: Budget | None = None
) -> AsyncIterator[Runner]:
    runner = Runner(NODE, collectors, disabled, budget or Budget(1.0), clock=lambda: 1234.5)
    runner.start()
    try:
        yield runner
    finally:
        await runner.stop()


async def first(runner: Runner, name: str) -> Reading:
    await until(lambda: name in runner.snapshot.readings)
    return runner.snapshot.readings[name]


async def test_a_read_that_returns_is_ok_with_its_record_time_and_cost() -> None:
    async def costly(self: Stub) -> Record:
        await self.worker.run(burn, 0.02)
        return RECORD

    async with running(stub("conntrack", costly)) as runner:
        reading = await first(runner, "conntrack")
    assert reading.outcome is Outcome.OK
    assert reading.record is RECORD
    assert reading.last_success == 1234.5
    assert reading.cpu_seconds >= 0.02
    assert reading.duration is not None
    assert reading.duration >= 0.02


@pytest.mark.parametrize(
    ("error", "outcome", "detail"),
    [
        (AbsentError("no such module"), Outcome.ABSENT, "no such module"),
        (DeniedError("needs NET_ADMIN"), Outcome.DENIED, "needs NET_ADMIN"),
        (BrokenError("short message"), Outcome.FAILED, "short message"),
        (TimeoutError("slow"), Outcome.TIMEOUT, "slow"),
        (ValueError("odd"), Outcome.FAILED, "ValueError: odd"),
        (PermissionError(1, "no"), Outcome.FAILED, "PermissionError: [Errno 1] no"),
        (MemoryError(), Outcome.FAILED, "MemoryError: "),
        (StopAsyncIteration(), Outcome.FAILED, "StopAsyncIteration: "),
        (asyncio.CancelledError(), Outcome.FAILED, "CancelledError: "),
        (SystemExit(3), Outcome.FAILED, "SystemExit: 3"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_whatever_a_read_raises_is_an_outcome_of_that_collector_alone(
    error: BaseException, outcome: Outcome, detail: str
) -> None:
    async def fails(_: Stub) -> Record:
        raise error

    async with running(stub("ipvs", fails), stub("conntrack", healthy)) as runner:
        await until(lambda: runner.ready)
        reading = runner.snapshot.readings["ipvs"]
        assert (reading.outcome, reading.detail, reading.record) == (outcome, detail, None)
        assert runner.snapshot.readings["conntrack"].outcome is Outcome.OK


async def test_a_read_that_hangs_is_a_timeout_and_the_others_go_on() -> None:
    reads = 0

    async def counts(_: Stub) -> Record:
        nonlocal reads
        reads += 1
        return RECORD

    async with running(stub("ipvs", hangs, timeout=0.05), stub("conntrack", counts)) as runner:
        reading = await first(runner, "ipvs")
        assert reading.outcome is Outcome.TIMEOUT
        assert reading.detail == "no answer within 0.05 s"
        assert reads >= 2
        assert runner.snapshot.readings["conntrack"].outcome is Outcome.OK


async def test_a_read_that_hangs_in_its_thread_is_a_timeout_until_it_comes_back() -> None:
    release = threading.Event()

    async def blocks(self: Stub) -> Record:
        await self.worker.run(release.wait)
        return RECORD

    async with running(stub("ipvs", blocks, timeout=0.05)) as runner:
        await until(
            lambda: (
                runner.snapshot.readings.get("ipvs", Reading(Outcome.OK)).detail
                == "the last read has not come back"
            )
        )
        assert runner.snapshot.readings["ipvs"].outcome is Outcome.TIMEOUT
        release.set()
        await until(lambda: runner.snapshot.readings["ipvs"].outcome is Outcome.OK)


async def test_a_failure_withholds_the_record_but_keeps_when_it_last_went_well() -> None:
    failing = False

    async def fickle(_: Stub) -> Record:
        if failing:
            raise BrokenError("odd")
        return RECORD

    async with running(stub("conntrack", fickle)) as runner:
        assert (await first(runner, "conntrack")).record is RECORD
        failing = True
        await until(lambda: runner.snapshot.readings["conntrack"].outcome is Outcome.FAILED)
        reading = runner.snapshot.readings["conntrack"]
        assert reading.record is None
        assert reading.last_success == 1234.5
        failing = False
        await until(lambda: runner.snapshot.readings["conntrack"].record is RECORD)


async def test_ready_once_each_enabled_collector_has_had_an_outcome_of_whatever_kind() -> None:
    async def absent(_: Stub) -> Record:
        raise AbsentError("none")

    late = asyncio.Event()

    async def waits(_: Stub) -> Record:
        await late.wait()
        return RECORD

    collectors = stub("ipvs", absent), stub("conntrack", waits)
    async with running(*collectors, disabled=["pressure"]) as runner:
        await first(runner, "ipvs")
        assert runner.waiting == ("conntrack",)
        assert not runner.ready
        assert runner.snapshot.readings["pressure"].outcome is Outcome.DISABLED
        late.set()
        await until(lambda: runner.ready)


async def test_a_snapshot_once_taken_does_not_change() -> None:
    async with running(stub("conntrack", healthy)) as runner:
        before = runner.snapshot
        await first(runner, "conntrack")
        assert before.readings == {}
        assert runner.snapshot is not before


async def test_who_waits_for_another_snapshot_wakes_at_each() -> None:
    async with running(stub("conntrack", healthy)) as runner:
        for _ in range(3):
            before = runner.snapshot
            async with asyncio.timeout(5):
                await runner.replaced()
            assert runner.snapshot is not before


async def test_a_wait_that_fails_is_logged_and_does_not_become_a_busy_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reads = 0

    class Broken(Stub):
        interval = 0.05

        async def due(self) -> None:
            raise OSError("the socket is gone")

    async def counts(_: Stub) -> Record:
        nonlocal reads
        reads += 1
        return RECORD

    async with running(Broken(counts)):
        started = time.monotonic()
        await until(lambda: reads > 3)
    assert time.monotonic() - started >= 3 * Broken.interval
    assert "waiting for the next read failed: OSError('the socket is gone')" in caplog.text


async def test_the_budget_is_charged_for_reads_and_for_what_happens_between_them() -> None:
    class Follower(Stub):
        async def due(self) -> None:
            await self.worker.run(burn, 0.2)
            await super().due()

    budget = Budget(0.001)
    budget.spend(BURST - 0.1)
    async with running(Follower(healthy), budget=budget):
        assert budget.solvent()
        await until(lambda: not budget.solvent())


async def test_an_outcome_is_logged_when_it_changes_and_not_with_each_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    reads = 0

    async def fickle(_: Stub) -> Record:
        nonlocal reads
        reads += 1
        if 3 <= reads < 6:
            raise DeniedError("needs NET_ADMIN")
        return RECORD

    async with running(stub("ipvs", fickle)):
        await until(lambda: reads > 8)
    lines = [
        (record.levelname, record.getMessage().partition(" in ")[0]) for record in caplog.records
    ]
    assert lines == [
        ("INFO", "ipvs: ok: read"),
        ("WARNING", "ipvs: denied: needs NET_ADMIN"),
        ("INFO", "ipvs: ok: read"),
    ]


async def test_stop_waits_for_no_read_that_hangs_and_closes_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()

    async def blocks(self: Stub) -> Record:
        await self.worker.run(release.wait)
        return RECORD

    async def ignores_cancellation(_: Stub) -> Record:
        while not release.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return RECORD

    class Unclosable(Stub):
        async def close(self) -> None:
            await super().close()
            raise OSError("cannot close")

    collectors = stub("ipvs", blocks), stub("xtables", ignores_cancellation), Unclosable(healthy)
    runner = Runner(NODE, collectors, (), Budget(1.0))
    runner.start()
    await first(runner, "conntrack")
    started = time.monotonic()
    await runner.stop()
    assert time.monotonic() - started < 3
    assert all(each.closed for each in collectors)
    assert "xtables: does not stop" in caplog.text
    assert "conntrack: stopped badly: OSError('cannot close')" in caplog.text
    release.set()


async def test_a_task_that_is_stopped_ends_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(stub("ipvs", hangs), stub("conntrack", healthy)) as runner:
        await first(runner, "conntrack")
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []
