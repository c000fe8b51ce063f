"""Cost of reading the IPVS table, beside `ipvsadm -Sn`: `python -m tests.bench.ipvs`.

Both run in one User Mode Linux kernel, several times in turn. That kernel is many times slower than
the machine it runs on, so only the ratio means something.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import time
from typing import TypedDict

from tests.lab import rulesets, uml
from vipscope.budget import BURST, Budget
from vipscope.collectors.ipvs import IpvsCollector
from vipscope.settings import Settings
from vipscope.snapshot import Ipvs

VIRTUAL_SERVERS = 5000
REAL_SERVERS = 13
ROUNDS = 3


class Measurement(TypedDict):
    """CPU seconds are medians over the rounds, and hold for the User Mode Linux kernel only."""

    virtual_servers: int
    real_servers: int
    """Of each virtual server."""
    collector_cpu_seconds: float
    """A first read: the table, the totals, and the addresses of the node's devices."""
    ipvsadm_cpu_seconds: float
    ratio: float
    repeated_read_cpu_seconds: float
    """A read that finds no reason to read the table."""


def measure() -> Measurement:
    """Boot the kernel, and measure in it."""
    return uml.call(_measure, timeout=600, kube_ipvs0=True)


def _measure() -> Measurement:
    services = rulesets.cluster(VIRTUAL_SERVERS, REAL_SERVERS)
    subprocess.run(["ipvsadm", "-R"], input=rulesets.ipvs(services), text=True, check=True)
    addresses = rulesets.ipvs_addresses(services)
    subprocess.run(["ip", "-batch", "-"], input=addresses, text=True, check=True)
    collector, repeated, ipvsadm = [], [], []
    for _ in range(ROUNDS):
        first, second = asyncio.run(_read())
        collector.append(first)
        repeated.append(second)
        ipvsadm.append(_ipvsadm())
    ours, theirs = statistics.median(collector), statistics.median(ipvsadm)
    return {
        "virtual_servers": VIRTUAL_SERVERS,
        "real_servers": REAL_SERVERS,
        "collector_cpu_seconds": ours,
        "ipvsadm_cpu_seconds": theirs,
        "ratio": ours / theirs,
        "repeated_read_cpu_seconds": statistics.median(repeated),
    }


async def _read() -> tuple[float, float]:
    """CPU seconds of this process for the first and the second read of a new collector."""
    collector = IpvsCollector(Settings(), Budget(1.0))
    before = time.process_time()
    record = await collector.read()
    between = time.process_time()
    _check(record)
    collector.budget.spend(BURST + between)  # nothing left, so the table stays
    start = time.process_time()
    await collector.read()
    end = time.process_time()
    await collector.close()
    return between - before, end - start


def _check(record: Ipvs) -> None:
    counted = sum(record.virtual_servers.values()), sum(record.real_servers.values())
    wanted = VIRTUAL_SERVERS, VIRTUAL_SERVERS * REAL_SERVERS
    if counted != wanted or record.unbound_addresses != {"ipv4": 0, "ipv6": 0}:
        raise AssertionError(f"wrong record: {counted}, {record.unbound_addresses}")


def _ipvsadm() -> float:
    """CPU seconds of `ipvsadm -Sn`, its output thrown away."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["ipvsadm", "-Sn"], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    # By its own name, for the other kernel has to find the function that is called there.
    from tests.bench import ipvs

    print(json.dumps(ipvs.measure(), indent=2))  # noqa: T201 - a command prints
