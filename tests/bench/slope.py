"""Does the slope that the rules record agree with what was measured?

A namespace in mode iptables grows as in the story. An exporter probes its last Service, and a real
Prometheus with the project's rules, hastened, scrapes it. The exporter also writes down each
latency as it was measured, before it is one of a bucket: the recorded slope of p99 over rules is
set beside a line through the p99s of these, each of as long a time as the rules look back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from alerts import growth
from alerts.association import BY_NODE
from alerts.settings import MINUTE, Settings
from alerts.sources import RATE_WINDOW
from tests.bench import story
from tests.bench.nftables import PORT, exporter
from tests.lab import rulesets
from tests.lab.monitoring import Monitoring, rehearsed
from tests.lab.namespace import Backend, Namespace
from tests.lab.node import NAME, POD, furnish
from vipscope import cli
from vipscope.probe import attempt
from vipscope.settings import Address, ProbeTarget, load

BACKENDS: Sequence[Backend] = ("nft", "legacy")
SETTINGS = rehearsed(Settings(sources=("probe",)))
POINT = MINUTE / SETTINGS.hasten
"""Seconds between two scrapes, and between two recorded points."""
WINDOW = RATE_WINDOW / SETTINGS.hasten
"""Seconds that a rate looks back, and of which a p99 is."""
TARGETS = 20
"""Times that the last Service is probed: 100 connections through the VIP a second."""
SECONDS = 25.0
"""Of one size, once its rules are counted."""

_FLAGS = ("--role=node", f"--node-name={NAME}", "--cpu-budget=100", "--probe.interval=0.1")
_POD = f"""
import socket
with socket.create_server(("{POD["ipv4"]}", {story.PORT}), backlog=4096) as server:
    while True:
        server.accept()[0].close()
"""


class Slopes(NamedTuple):
    """p99 over rules, in ms per 10,000 rules."""

    recorded: float
    """By the recording rules."""
    fitted: float
    """Of a line through the p99s of the raw measurements."""


class Latency(NamedTuple):
    """What a probe through the VIP has measured."""

    at: float
    """A time.monotonic()."""
    seconds: float


class Point(NamedTuple):
    """What was measured at one size in a window."""

    rules: float
    """kube-proxy's, as recorded."""
    p99: float
    """Seconds."""


def measure() -> Mapping[Backend, Slopes]:
    """Both, on each backend of iptables."""
    return {backend: _grown(backend) for backend in BACKENDS}


def _grown(backend: Backend) -> Slopes:
    services = story.services_of(max(story.SIZES))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        namespace = stack.enter_context(Namespace())
        furnish(namespace)
        namespace.popen(sys.executable, "-c", _POD)
        with exporter(namespace, *_FLAGS):
            watched = stack.enter_context(
                Monitoring(namespace, directory, SETTINGS, {NAME: f"127.0.0.1:{PORT}"})
            )
        points: list[Point] = []
        for size in story.SIZES:
            # Without an exporter, until no rate looks back to another size.
            time.sleep(1.2 * WINDOW)
            namespace.restore(_rules(services, size), backend)
            raw = directory / f"{size}.txt"
            program = __spec__.name, str(raw)
            with exporter(namespace, *_FLAGS, *_targets(services[0]), program=program):
                time.sleep(SECONDS)
                ((_, rules),) = watched.query(str(growth.NODE_RULES))
                slope = watched.query(str(BY_NODE.slope))
            points += [Point(rules, p99) for p99 in _p99s(_read(raw))]
    ((_, recorded),) = slope
    return Slopes(recorded, _fitted(points))


def _rules(services: Sequence[rulesets.Service], size: int) -> str:
    """So many Services, of which the first is the last that the kernel finds."""
    return rulesets.iptables([*services[1:size], services[0]], seed=None)


def _targets(service: rulesets.Service) -> Sequence[str]:
    ways = f"tcp://{service.cluster_ip}:80,direct={POD['ipv4']}:{story.PORT}"
    return [f"--probe.target=last-{i}={ways}" for i in range(TARGETS)]


def _read(raw: Path) -> Sequence[Latency]:
    return [Latency(*map(float, line.split())) for line in raw.read_text().splitlines()]


def _p99s(measured: Sequence[Latency]) -> Iterator[float]:
    """Seconds: the p99 of each window, as often as the rules record one."""
    end = measured[0].at + WINDOW
    while end < measured[-1].at:
        window = [each.seconds for each in measured if end - WINDOW < each.at <= end]
        yield statistics.quantiles(window, n=100, method="inclusive")[98]
        end += POINT


def _fitted(points: Sequence[Point]) -> float:
    rules, latencies = zip(*points, strict=True)
    return statistics.linear_regression(rules, latencies).slope * 1000 * 10_000


# --- in the exporter's process ----------------------------------------------------------------


def _write_down(out: TextIO) -> None:
    """Have each latency through a VIP written down, as a line of a `Latency`."""
    begin = attempt.begin

    def begin_anew(target: ProbeTarget, address: Address) -> tuple[socket.socket, attempt.Attempt]:
        made, steps = begin(target, address)
        return made, written(steps) if address == target.vip else steps

    def written(steps: attempt.Attempt) -> attempt.Attempt:
        measured = yield from steps
        out.write(f"{time.monotonic()} {measured.duration}\n")
        return measured

    attempt.begin = begin_anew


if __name__ == "__main__":
    with Path(sys.argv[1]).open("w", buffering=1) as out:
        _write_down(out)
        asyncio.run(cli._serve(load(sys.argv[2:], {})))
