"""The prober as the runner runs it."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import replace

import pytest

from tests.stubs import until
from vipscope.budget import Budget
from vipscope.collectors.probe import ProbeCollector
from vipscope.runner import Runner
from vipscope.settings import Settings, parse_probe_target
from vipscope.snapshot import Node, Outcome, Probes


def probing(target: str, interval: float = 0.02) -> ProbeCollector:
    settings = replace(
        Settings(), probe_targets=(parse_probe_target(target),), probe_interval=interval
    )
    return ProbeCollector(settings, Budget(1.0))


def running(collector: ProbeCollector) -> Runner:
    runner = Runner(Node("n", "6"), [collector], (), Budget(1.0))
    runner.start()
    return runner


async def test_without_a_target_it_is_absent_and_does_not_read_again_at_once() -> None:
    collector = ProbeCollector(Settings(), Budget(1.0))
    runner = running(collector)
    await until(lambda: runner.ready)
    first = runner.snapshot.readings["probe"]
    assert first.outcome is Outcome.ABSENT
    assert "--probe.target" in first.detail
    await asyncio.sleep(0.2)
    assert runner.snapshot.readings["probe"] is first
    await runner.stop()


async def test_what_it_measures_grows_from_read_to_read_and_its_cpu_is_charged() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        collector = probing(f"web=tcp://127.0.0.1:{port},direct=127.0.0.1:{port}")
        collector.interval = 0.2  # type: ignore[misc]
        runner = running(collector)

        def measured() -> int:
            reading = runner.snapshot.readings.get("probe")
            if reading is None:
                return 0
            assert isinstance(reading.record, Probes)
            return sum(sum(each.counts) for each in reading.record.durations.values())

        await until(lambda: measured() > 5)
        some = measured()
        await until(lambda: measured() > 2 * some)
        assert runner.snapshot.readings["probe"].cpu_seconds > 0
        await runner.stop()


async def test_it_stops_while_a_target_hangs_and_leaves_no_thread_or_socket(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        address = silent.getsockname()
        fillers = [socket.socket() for _ in range(4)]  # the queue is full: a SYN gets no answer
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(address)
        runner = running(probing(f"web=tcp://127.0.0.1:{address[1]},direct=127.0.0.1:{address[1]}"))
        await asyncio.sleep(0.3)
        await runner.stop()
        assert "does not stop" not in caplog.text
        await until(lambda: "probe" not in {each.name for each in threading.enumerate()})
        for each in fillers:
            each.close()
