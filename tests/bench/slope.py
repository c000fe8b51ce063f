"""Does the slope that the rules record agree with what was measured?

A namespace in mode iptables grows as in the story. An exporter probes its last Service, and a real
Prometheus with the project's rules, hastened, scrapes it. Meanwhile this bench makes handshakes of
its own with that Service: the recorded slope of p99 over rules is set beside a line through the
p99s of these, each of as long a time as the rules look back.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from alerts import growth
from alerts.association import BY_NODE
from alerts.settings import MINUTE, Settings
from alerts.sources import RATE_WINDOW
from tests.bench import story
from tests.bench.nftables import PORT, exporter
from tests.lab import rulesets
from tests.lab.monitoring import Monitoring
from tests.lab.namespace import Backend, Namespace
from tests.lab.node import NAME, POD, furnish

BACKENDS: Sequence[Backend] = ("nft", "legacy")
HASTEN = 30
SETTINGS = Settings(sources=("probe",), hasten=HASTEN, scrape_interval=MINUTE)
"""A scrape and a recorded point every 2 s."""
WINDOW = RATE_WINDOW / HASTEN
"""Seconds that a rate looks back, and of which a p99 is."""
TARGETS = 10
"""Times that the last Service is probed: 50 connections through the VIP a second."""
WINDOWS = 4
"""Of one size, from the exporter's start: what that costs the node is in both."""
PAUSE = 0.01
"""Seconds between two handshakes of the bench."""
LOST = 1.0
"""Seconds after which a SYN would be sent again: so long a handshake takes at least, then."""

_FLAGS = ("--role=node", f"--node-name={NAME}", "--cpu-budget=100", "--probe.interval=0.1")
_POD = f"""
import socket
with socket.create_server(("{POD["ipv4"]}", {story.PORT}), backlog=4096) as server:
    while True:
        server.accept()[0].close()
"""
_RESET = struct.pack("=ii", 1, 0)
_TCP_INFO_RTT = slice(68, 72)


class Slopes(NamedTuple):
    """p99 over rules, in ms per 10,000 rules."""

    recorded: float
    """By the recording rules."""
    fitted: float
    """Of a line through the p99s of the raw measurements."""


class Point(NamedTuple):
    """What was measured at one size in a window."""

    rules: float
    """kube-proxy's, as recorded."""
    p99: float
    """Seconds, of the bench's own handshakes in a window."""


def measure() -> Mapping[Backend, Slopes]:
    """Both, on each backend of iptables."""
    return {backend: _grown(backend) for backend in BACKENDS}


def _grown(backend: Backend) -> Slopes:
    services = story.services_of(max(story.SIZES))
    vip = services[0].cluster_ip
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
            with exporter(namespace, *_FLAGS, *_targets(vip)):
                windows = [namespace.call(_handshakes, vip, WINDOW) for _ in range(WINDOWS)]
                ((_, rules),) = watched.query(str(growth.NODE_RULES))
                slope = watched.query(str(BY_NODE.slope))
            points += [Point(rules, _p99(handshakes)) for handshakes in windows]
    ((_, recorded),) = slope
    return Slopes(recorded, _fitted(points))


def _rules(services: Sequence[rulesets.Service], size: int) -> str:
    """So many Services, of which the first is the last that the kernel finds."""
    return rulesets.iptables([*services[1:size], services[0]], seed=None)


def _targets(vip: str) -> list[str]:
    direct = f"direct={POD['ipv4']}:{story.PORT}"
    return [f"--probe.target=last-{i}=tcp://{vip}:80,{direct}" for i in range(TARGETS)]


def _handshakes(vip: str, seconds: float) -> list[float]:
    """Seconds from SYN to SYN-ACK of one connection after another, as the kernel times them."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.settimeout(LOST)
            try:
                client.connect((vip, 80))
            except TimeoutError:
                found.append(LOST)
                continue
            info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RTT.stop)
        found.append(int.from_bytes(info[_TCP_INFO_RTT], sys.byteorder) / 1e6)
        time.sleep(PAUSE)
    return found


def _p99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def _fitted(points: Sequence[Point]) -> float:
    rules, p99s = zip(*points, strict=True)
    return statistics.linear_regression(rules, p99s).slope * 1000 * 10_000
