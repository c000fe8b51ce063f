"""A collector's thread."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import threading
import time
import weakref
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.stubs import burn, until
from vipscope.worker import BusyError, Worker


async def test_returns_what_the_function_returns_and_raises_what_it_raises() -> None:
    worker = Worker("test")
    assert await worker.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 7, 0)
    worker.stop()


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError()]
)
async def test_what_would_end_the_task_or_the_loop_comes_as_a_runtime_error(
    error: BaseException,
) -> None:
    def fail() -> None:
        raise error

    worker = Worker("test")
    with pytest.raises(RuntimeError, match=type(error).__name__):
        await worker.run(fail)
    assert await worker.run(lambda: 1) == 1
    worker.stop()


async def test_counts_the_cpu_of_its_functions_and_not_their_waiting() -> None:
    worker = Worker("test")
    await worker.run(time.sleep, 0.1)
    assert worker.cpu_seconds < 0.05
    await worker.run(burn, 0.1)
    assert 0.1 <= worker.cpu_seconds < 0.2
    worker.stop()


async def test_takes_no_more_work_while_it_hangs_and_works_again_afterwards() -> None:
    worker, release = Worker("test"), threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await worker.run(release.wait)
    with pytest.raises(BusyError):
        await worker.run(lambda: 1)
    release.set()
    await until(lambda: not worker._busy)
    assert await worker.run(lambda: 1) == 1
    worker.stop()


async def test_does_not_hold_on_to_a_result() -> None:
    class Large:
        pass

    worker = Worker("test")
    result = await worker.run(Large)
    gone = weakref.ref(result)
    del result
    await until(lambda: gone() is None)
    worker.stop()


def test_memory_of_large_blocks_is_given_back() -> None:
    """Also where one that was larger has been freed before, and something small lies behind."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=tell_growth, args=(theirs,))
    process.start()
    assert ours.recv() < 2 << 20
    process.join()


def tell_growth(answer: Connection) -> None:
    """Send the resident bytes by which a process grows whose worker used much memory."""
    worker = Worker("test")
    kept = []

    def use_much() -> None:
        bytearray(b"x" * (16 << 20))
        blocks = [bytearray(b"x" * (1 << 20)) for _ in range(12)]
        kept.append(bytes(1000))
        del blocks

    async def measure() -> int:
        await worker.run(lambda: None)
        before = resident()
        await worker.run(use_much)
        return resident() - before

    answer.send(asyncio.run(measure()))
    worker.stop()


def resident() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def test_its_thread_ends_after_stop() -> None:
    worker = Worker("short-lived")
    await worker.run(lambda: None)
    worker.stop()
    await until(lambda: "short-lived" not in {each.name for each in threading.enumerate()})


def test_work_that_outlives_the_event_loop_harms_nobody() -> None:
    worker, release = Worker("outlives"), threading.Event()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await worker.run(release.wait)

    asyncio.run(give_up())
    release.set()
    worker.stop()
    for thread in threading.enumerate():
        if thread.name == "outlives":
            thread.join(5)
            assert not thread.is_alive()
