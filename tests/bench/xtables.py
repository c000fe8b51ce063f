"""Cost of counting iptables-legacy, beside `iptables-legacy-save`: `python -m tests.bench.xtables`.

Both read 5,000 Services of 13 endpoints in one network namespace, several times in turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TypedDict

from tests.lab import rulesets
from tests.lab.namespace import Namespace
from vipscope.budget import Budget
from vipscope.collectors.xtables import Xtables
from vipscope.settings import Settings

SERVICES = 5000
ENDPOINTS = 13
ROUNDS = 7
INSIDE = "inside"
"""The argument of the process that measures, in the namespace."""


class Measurement(TypedDict):
    """CPU seconds are user and system time, medians over the rounds."""

    rules: int
    collector_cpu_seconds: float
    """A first read: all tables counted, and the depth of each Service."""
    iptables_legacy_save_cpu_seconds: float
    ratio: float
    repeated_read_cpu_seconds: float
    """A read that finds nothing changed."""
    resident_before: int
    """Resident bytes of the process before the first count."""
    resident_peak: int
    resident_after: int
    """After the last count."""


def measure() -> Measurement:
    """Load the ruleset into a network namespace, and measure in it."""
    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(SERVICES, ENDPOINTS)), "legacy")
        # A new process, in which nothing has used memory yet.
        process = namespace.popen(
            *(sys.executable, "-m", __spec__.name, INSIDE),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
        )
        answer, _ = process.communicate()
        measurement: Measurement = json.loads(answer)
        return measurement


def _measure() -> Measurement:
    counts, repeated, saves = [], [], []
    before = _resident("VmRSS")
    for _ in range(ROUNDS):
        rules, count, again = asyncio.run(_read())
        counts.append(count)
        repeated.append(again)
        saves.append(_save())
    ours, theirs = statistics.median(counts), statistics.median(saves)
    return {
        "rules": rules,
        "collector_cpu_seconds": ours,
        "iptables_legacy_save_cpu_seconds": theirs,
        "ratio": ours / theirs,
        "repeated_read_cpu_seconds": statistics.median(repeated),
        "resident_before": before,
        "resident_peak": _resident("VmHWM"),
        "resident_after": _resident("VmRSS"),
    }


async def _read() -> tuple[int, float, float]:
    """Rules, and this process's CPU seconds for a new collector's first and second read."""
    collector = Xtables(Settings(), Budget(1.0))
    start = time.process_time()
    record = await collector.read()
    between = time.process_time()
    await collector.read()
    end = time.process_time()
    await collector.close()
    rules = sum(count.rules for count in record.counts.values())
    return rules, between - start, end - between


def _save() -> float:
    """CPU seconds of iptables-legacy-save."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["iptables-legacy-save"], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _resident(field: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


if __name__ == "__main__":
    result = _measure() if INSIDE in sys.argv else measure()
    print(json.dumps(result, indent=2))  # noqa: T201 - a command prints
