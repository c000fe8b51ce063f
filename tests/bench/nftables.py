"""Cost of counting and following nf_tables: `python -m tests.bench.nftables`.

5,000 Services of 13 endpoints, as kube-proxy writes them in mode iptables (backend nft) and in mode
nftables, each in a network namespace of its own. CPU is user and system time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import TypedDict

from tests.lab import rulesets
from tests.lab.namespace import Namespace
from vipscope import metrics as m
from vipscope.budget import Budget
from vipscope.collectors.nftables import Nftables
from vipscope.netlink.nf_tables import Reader
from vipscope.settings import Settings
from vipscope.snapshot import Ruleset

SERVICES = 5000
ENDPOINTS = 13
ROUNDS = 9
UNCHANGED_READS = 200
CHANGES = 12
FIRST, FOLLOW = "first", "follow"
"""Arguments of the processes that measure, in the namespace."""
PORT = 9908
IPTABLES_WRITER = "iptables-nft-restore --noflush --wait"


class Measurement(TypedDict):
    """CPU seconds are medians, of ROUNDS counts and of CHANGES changes."""

    rules: int
    first_count_cpu_seconds: float
    """In a new process, from making the collector to its first record."""
    iptables_nft_save_cpu_seconds: float
    ratio: float
    """Median of the ratios of a count and the save beside it."""
    unchanged_cpu_seconds: float
    """A read that finds nothing changed."""
    iptables_change_cpu_seconds: float
    """One endpoint comes or goes: all that the process does until its record is exact again."""
    iptables_change_visible_seconds: float
    """From the commit until /metrics of an exporter shows its generation; the longest."""
    nftables_change_cpu_seconds: float
    nftables_change_visible_seconds: float
    nft_json_cpu_seconds: float
    """`nft -j list ruleset` in mode nftables, once."""


def measure() -> Measurement:
    """Load the rulesets into network namespaces, and measure in them."""
    services, after, changed = _clusters()
    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(services))
        firsts, saves, repeated = [], [], []
        for _ in range(ROUNDS):
            first = json.loads(_python(namespace, FIRST).communicate()[0])
            firsts.append(first["first"])
            repeated.append(first["repeated"])
            saves.append(namespace.call(_cpu_of, "iptables-nft-save"))
        change = _changes(namespace, IPTABLES_WRITER, iptables_flips())
    with Namespace() as namespace:
        namespace.nft(rulesets.nftables(services))
        native = (
            rulesets.nftables_flip(services, changed),
            rulesets.nftables_flip(after, services[0]),
        )
        native_change = _changes(namespace, "nft -f -", native)
        nft_json = namespace.call(_cpu_of, "nft -j list ruleset")
    return {
        "rules": first["rules"],
        "first_count_cpu_seconds": statistics.median(firsts),
        "iptables_nft_save_cpu_seconds": statistics.median(saves),
        "ratio": statistics.median(
            ours / theirs for ours, theirs in zip(firsts, saves, strict=True)
        ),
        "unchanged_cpu_seconds": statistics.median(repeated),
        "iptables_change_cpu_seconds": change[0],
        "iptables_change_visible_seconds": change[1],
        "nftables_change_cpu_seconds": native_change[0],
        "nftables_change_visible_seconds": native_change[1],
        "nft_json_cpu_seconds": nft_json,
    }


def _clusters() -> tuple[Sequence[rulesets.Service], Sequence[rulesets.Service], rulesets.Service]:
    """The cluster, the same without an endpoint of its first Service, and this Service."""
    services = rulesets.cluster(SERVICES, ENDPOINTS)
    changed = services[0].without(services[0].endpoints[0])
    return services, (changed, *services[1:]), changed


def iptables_flips() -> tuple[str, str]:
    """What IPTABLES_WRITER takes when the endpoint goes, and when it comes back."""
    services, after, changed = _clusters()
    return (
        rulesets.iptables_flip(services, changed, seed=1),
        rulesets.iptables_flip(after, services[0], seed=2),
    )


def _changes(namespace: Namespace, writer: str, flips: Sequence[str]) -> tuple[float, float]:
    """Median CPU seconds of a change, and the longest time until one is visible."""
    return _change_cpu_seconds(namespace, writer, flips), _change_visible_seconds(
        namespace, writer, flips
    )


def _change_cpu_seconds(namespace: Namespace, writer: str, flips: Sequence[str]) -> float:
    process = _python(namespace, FOLLOW)
    lines = process.stdout
    assert lines is not None

    def cpu_seconds_at(generation: int) -> float:
        for line in lines:
            reached, cpu_seconds = json.loads(line)
            if reached == generation:
                return float(cpu_seconds)
        raise AssertionError("the follower has ended")

    spent = [cpu_seconds_at(namespace.generation())]
    for turn in range(CHANGES):
        namespace.run(*writer.split(), stdin=flips[turn % 2])
        spent.append(cpu_seconds_at(namespace.generation()))
    process.kill()
    return statistics.median(after - before for before, after in itertools.pairwise(spent))


def _change_visible_seconds(namespace: Namespace, writer: str, flips: Sequence[str]) -> float:
    with exporter(namespace):
        return max(
            namespace.call(_visible_after, writer, flips[turn % 2]) for turn in range(CHANGES)
        )


# --- in the namespace -----------------------------------------------------------------------------


@contextlib.contextmanager
def exporter(
    namespace: Namespace, *flags: str, program: Sequence[str] = ("vipscope",)
) -> Iterator[subprocess.Popen[bytes]]:
    """The exporter as a process in the namespace, once each collector has had an outcome.

    `program` is another module that runs it, and what it takes before the flags.
    """
    process = namespace.popen(
        *(sys.executable, "-m", *program, "--log.level=error", *flags),
        f"--web.listen-address=127.0.0.1:{PORT}",
        env=environment(),
    )
    namespace.call(_wait_until_ready)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _python(namespace: Namespace, task: str) -> subprocess.Popen[str]:
    """This module as a new process, in which nothing has used CPU or memory yet."""
    return namespace.popen(
        *(sys.executable, "-m", __spec__.name, task),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _wait_until_ready() -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(_url("/readyz")):
            return
        time.sleep(0.1)
    raise TimeoutError("the exporter does not become ready")


def _url(path: str) -> str:
    return f"http://127.0.0.1:{PORT}{path}"


def _visible_after(writer: str, text: str) -> float:
    """Run the writer; seconds from its last commit until /metrics shows the generation."""
    thread = threading.Thread(target=_write, args=(writer, text))
    reader = Reader()
    generation, committed = reader.generation(), time.monotonic()
    thread.start()
    while thread.is_alive():
        now = reader.generation()
        if now != generation:
            generation, committed = now, time.monotonic()
        time.sleep(0.002)
    reader.close()
    line = f"\n{m.GENERATION} {float(generation)}\n".encode()
    while True:
        with urllib.request.urlopen(_url("/metrics?collect[]=nftables")) as answer:
            if line in answer.read():
                return time.monotonic() - committed
        time.sleep(0.01)


def _write(writer: str, text: str) -> None:
    subprocess.run(writer.split(), input=text.encode(), check=True)


def _cpu_of(command: str) -> float:
    """CPU seconds of a command, its output thrown away."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command.split(), stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def _first() -> dict[str, float]:
    """Rules, and CPU seconds of the first read and of one that finds nothing changed."""
    start = time.process_time()
    collector = Nftables(Settings(), Budget(1.0))
    record = await collector.read()
    first = time.process_time() - start
    start = time.process_time()
    for _ in range(UNCHANGED_READS):
        await collector.read()
    repeated = (time.process_time() - start) / UNCHANGED_READS
    await collector.close()
    rules = sum(count.rules for count in record.counts.values())
    return {"rules": rules, "first": first, "repeated": repeated}


async def _follow() -> None:
    """Print generation and CPU seconds of the process so far, whenever a record is exact."""
    collector = Nftables(Settings(), Budget(1.0))
    printed: Ruleset | None = None
    while True:
        record = await collector.read()
        if printed is None or record.generation != printed.generation:
            print(json.dumps([record.generation, time.process_time()]), flush=True)  # noqa: T201
            printed = record
        await collector.due()


if __name__ == "__main__":
    if FOLLOW in sys.argv:
        asyncio.run(_follow())
    else:
        result = asyncio.run(_first()) if FIRST in sys.argv else measure()
        print(json.dumps(result, indent=2))  # noqa: T201 - a command prints
