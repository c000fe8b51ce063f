"""Cost of the whole process, and of asking it: `python -m tests.bench.exporter`.

`python -m vipscope` runs in one network namespace with 5,000 Services of 13 endpoints, in another
with a hundredth of them, both as kube-proxy writes them in mode iptables (backend nft).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TypedDict

from tests.bench.nftables import (
    ENDPOINTS,
    IPTABLES_WRITER,
    PORT,
    SERVICES,
    environment,
    exporter,
    iptables_flips,
)
from tests.lab import browser, rulesets
from tests.lab.namespace import Namespace
from vipscope import cli
from vipscope.netlink.nfnetlink import NETLINK_NETFILTER
from vipscope.settings import load

FEW_SERVICES = SERVICES // 100
SCRAPERS = 10
BLOCKS, SCRAPES = 20, 40
"""Blocks in turn at either size, and scrapes of each scraper in a block."""
LOOKS = 10
"""At the page, each at a second of its own: within one it is not made anew."""
PAGE_WIDTHS = (390, 1200)
"""Pixels."""
FLIPS = 10
HEARTBEAT = 0.001
CHANGES = 10_000
SETTLE = 10.0
REST = 120.0
SCRAPE_INTERVAL = 15.0
SERVE, IDLE = "serve", "idle"
"""Arguments of two processes that watch their own event loop: the exporter's, and one that has
nothing to do, whose lateness is the machine's."""
REQUEST = (
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n"
    b"Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n"
    b"\r\n"
)


class Measurement(TypedDict):
    """Times in seconds, memory in bytes."""

    scrape_p50_seconds: float
    """Of SCRAPERS that all ask at once, over connections that stay open."""
    scrape_p99_seconds: float
    few_rules_scrape_p50_seconds: float
    few_rules_scrape_p99_seconds: float
    scrape_p99_ratio: float
    page_seconds: float
    """Longest of LOOKS, from asking for the page until it is there."""
    page_shown_seconds: float
    """Longest of the page's layouts in Chromium, as wide as a phone and as a screen."""
    stall_seconds: float
    """The longest lateness of the event loop in the first full read, FLIPS and scrapes."""
    idle_stall_seconds: float
    """That of an event loop that has nothing to do, at the same time."""
    resident: int
    """After the first full read and the scrapes."""
    resident_after_1000_changes: int
    resident_after_10000_changes: int
    resident_peak: int
    at_rest_core_share: float
    """CPU of the process over REST seconds with a scrape every SCRAPE_INTERVAL."""


def measure() -> Measurement:
    """Load the rulesets into network namespaces, and measure in them."""
    with Namespace() as large, Namespace() as small:
        large.restore(rulesets.iptables(rulesets.cluster(SERVICES, ENDPOINTS)))
        small.restore(rulesets.iptables(rulesets.cluster(FEW_SERVICES, ENDPOINTS)))
        stall, idle_stall = _stall_seconds(large)
        with exporter(large) as process, exporter(small):
            slow, fast = [], []
            for _ in range(BLOCKS):
                slow += large.call(_scrape_seconds)
                fast += small.call(_scrape_seconds)
            resident = status(process.pid, "VmRSS")
            page_seconds, page = large.call(_look)
            at_rest = large.call(_at_rest, process.pid)
            thousand, all_changes = large.call(_resident_over_changes, process.pid)
            peak = status(process.pid, "VmHWM")
    return {
        "scrape_p50_seconds": statistics.median(slow),
        "scrape_p99_seconds": _p99(slow),
        "few_rules_scrape_p50_seconds": statistics.median(fast),
        "few_rules_scrape_p99_seconds": _p99(fast),
        "scrape_p99_ratio": _p99(slow) / _p99(fast),
        "page_seconds": page_seconds,
        "page_shown_seconds": max(
            each.milliseconds / 1e3 for each in browser.measure(page, PAGE_WIDTHS)
        ),
        "stall_seconds": stall,
        "idle_stall_seconds": idle_stall,
        "resident": resident,
        "resident_after_1000_changes": thousand,
        "resident_after_10000_changes": all_changes,
        "resident_peak": peak,
        "at_rest_core_share": at_rest,
    }


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def status(pid: int, field: str) -> int:
    """VmRSS or VmHWM of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- the event loop -------------------------------------------------------------------------------


def _stall_seconds(namespace: Namespace) -> tuple[float, float]:
    processes = [
        namespace.popen(
            *(sys.executable, "-m", __spec__.name, task),
            env=environment(),
            stdout=subprocess.PIPE,
        )
        for task in (SERVE, IDLE)
    ]
    namespace.call(_scrape_until_ready)
    for flip in itertools.islice(itertools.cycle(iptables_flips()), FLIPS):
        namespace.run(*IPTABLES_WRITER.split(), stdin=flip)
        namespace.call(_scrape_seconds)
    for process in processes:
        process.terminate()
    serving, idle = (float(json.loads(process.communicate()[0])) for process in processes)
    return serving, idle


async def _serve() -> None:
    """As the command does."""
    await cli._serve(load([f"--web.listen-address=127.0.0.1:{PORT}", "--log.level=error"], {}))


async def _idle() -> None:
    """Until the signal that also stops the exporter."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


async def _watch(work: Coroutine[None, None, None]) -> float:
    """The longest time by which a short sleep was too long while the work was done."""
    task = asyncio.create_task(work)
    worst = 0.0
    while not task.done():
        start = time.monotonic()
        await asyncio.sleep(HEARTBEAT)
        worst = max(worst, time.monotonic() - start - HEARTBEAT)
    return worst


# --- in the namespace -----------------------------------------------------------------------------


def _scrape_until_ready() -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            _scrape_seconds()
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz"):
                return
    raise TimeoutError("the exporter does not become ready")


def _scrape_seconds() -> list[float]:
    """Seconds of each scrape; all scrapers ask in the same moment, again and again."""
    scrapers = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(SCRAPERS)]
    seconds = []
    for _ in range(SCRAPES):
        asked = []
        for scraper in scrapers:
            asked.append(time.monotonic())
            scraper.sendall(REQUEST)
        for scraper, at in zip(scrapers, asked, strict=True):
            receive(scraper)
            seconds.append(time.monotonic() - at)
    for scraper in scrapers:
        scraper.close()
    return seconds


def _look() -> tuple[float, str]:
    """The longest look at the page, and the page."""
    seconds = []
    for _ in range(LOOKS):
        time.sleep(1)
        began = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/") as answer:
            text = answer.read().decode()
        seconds.append(time.monotonic() - began)
    return max(seconds), text


def receive(scraper: socket.socket) -> None:
    """Take one answer, all of it."""
    answer = bytearray()
    head = -1
    while head < 0:
        answer += scraper.recv(1 << 20)
        head = answer.find(b"\r\n\r\n")
    _, _, rest = answer.partition(b"Content-Length: ")
    left = int(rest.partition(b"\r\n")[0]) - (len(answer) - head - 4)
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise AssertionError(bytes(answer[:200]))
    while left:
        left -= len(scraper.recv(left))


def _at_rest(pid: int) -> float:
    """Share of one core that the process takes, scraped now and then."""
    with socket.create_connection(("127.0.0.1", PORT)) as scraper:
        started, before = time.monotonic(), cpu_seconds(pid)
        while (elapsed := time.monotonic() - started) < REST:
            scraper.sendall(REQUEST)
            receive(scraper)
            time.sleep(SCRAPE_INTERVAL)
        return (cpu_seconds(pid) - before) / elapsed


def _resident_over_changes(pid: int) -> tuple[int, int]:
    """Resident bytes of the process once it has followed 1,000 and CHANGES transactions."""
    chain = rulesets.cluster(1, 1)[0].chain
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        resident = []
        for number in range(1, CHANGES + 1):
            _commit(netlink, chain, add=number % 2 == 1)
            if number in (1000, CHANGES):
                time.sleep(SETTLE)
                resident.append(status(pid, "VmRSS"))
    return resident[0], resident[1]


def _commit(netlink: socket.socket, chain: str, *, add: bool) -> None:
    """One transaction, faster than any tool makes it: a rule added to a chain, or all deleted."""
    where = _attribute(1, b"nat\0") + _attribute(2, chain.encode() + b"\0")
    create, acknowledge = 0x400 | 0x800, 0x4  # NLM_F_CREATE | NLM_F_APPEND, NLM_F_ACK
    if add:  # NFT_MSG_NEWRULE with no expression
        change = _message(10 << 8 | 6, acknowledge | create, socket.AF_INET, 0, where)
    else:  # NFT_MSG_DELRULE
        change = _message(10 << 8 | 8, acknowledge, socket.AF_INET, 0, where)
    netlink.send(_message(16, 0, 0, 10) + change + _message(17, 0, 0, 10))
    kind, code = struct.unpack_from("=4xH10xi", netlink.recv(4096))
    if kind != 2 or code:
        raise OSError(-code, os.strerror(-code))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _message(kind: int, flags: int, family: int, resource: int, body: bytes = b"") -> bytes:
    head = struct.pack("=IHHIIBB", 20 + len(body), kind, 0x1 | flags, 0, 0, family, 0)
    return head + struct.pack(">H", resource) + body


if __name__ == "__main__":
    tasks = {SERVE: _serve, IDLE: _idle}
    chosen = [task for name, task in tasks.items() if name in sys.argv]
    result = asyncio.run(_watch(chosen[0]())) if chosen else measure()
    print(json.dumps(result, indent=2))  # noqa: T201 - a command prints
