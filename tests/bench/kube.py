"""Cost of following the API: `python -m tests.bench.kube`.

A server in a process of its own holds 5,000 Services of 13 endpoints and one of 100, whose slice it
then modifies as fast as it can. What follows them is a fresh process, whose CPU time and memory
count.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, TypedDict

from tests.lab.apiserver import ApiServer, api_objects, kubeconfig
from tests.lab.rulesets import cluster
from tests.stubs import until
from vipscope.cluster import EndpointSlice
from vipscope.kube.client import Client
from vipscope.kube.reflector import Change, Reflector
from vipscope.kube.resources import PROXIED_SERVICES, PROXIED_SLICES, T

SERVICES = 5000
ENDPOINTS = 13
SLICE_ENDPOINTS = 100
EVENTS = 5000
LARGE = "large"
PATIENCE = 60.0
"""Seconds."""


class Measurement(TypedDict):
    """Seconds of CPU and MiB of memory."""

    services: int
    endpoints: int
    list_cpu_seconds: float
    """Both lists, from the request to the records."""
    list_seconds: float
    """The same by the clock, with the server's part."""
    event_cpu_seconds: float
    """One event of a slice of 100 endpoints, from the socket to the handler."""
    events_per_second: float
    """By the clock, while the server sends as fast as it can."""
    events_per_cpu_second: float
    rss_start: float
    """With all imports, before the first request."""
    rss_listed: float
    rss_end: float


class _Counter(Generic[T]):
    """A handler that counts events."""

    def __init__(self) -> None:
        self.events = 0

    def listed(self, changes: Sequence[Change[T]], *, first: bool) -> None:
        pass

    def changed(self, _: Change[T]) -> None:
        self.events += 1


def measure() -> Measurement:
    """Start a server and measure in a fresh process."""
    services = cluster(SERVICES, ENDPOINTS)
    large = replace(cluster(1, SLICE_ENDPOINTS)[0], name=LARGE)
    objects = api_objects((*services, large))
    with (
        ApiServer(objects) as server,
        TemporaryDirectory() as directory,
        ProcessPoolExecutor(1, get_context("spawn")) as process,
    ):
        path = kubeconfig(Path(directory), server.url)
        return process.submit(_follow, path, server.port).result()


def _follow(path: Path, port: int) -> Measurement:
    return asyncio.run(_measure(Client(path), port))


async def _measure(client: Client, port: int) -> Measurement:
    server = ApiServer()
    server.port = port
    async with client.connect():
        pass  # so that all is imported
    services = Reflector(client, PROXIED_SERVICES, _Counter())
    counter: _Counter[EndpointSlice] = _Counter()
    slices = Reflector(client, PROXIED_SLICES, counter)
    rss_start, start, cpu = _rss(), time.perf_counter(), time.process_time()
    tasks = [asyncio.create_task(each.run()) for each in (services, slices)]
    await until(lambda: services.synced and slices.synced, PATIENCE)
    list_cpu, list_seconds = time.process_time() - cpu, time.perf_counter() - start
    rss_listed = _rss()
    loop = asyncio.get_running_loop()
    start, cpu = time.perf_counter(), time.process_time()
    flap = loop.run_in_executor(
        None,
        lambda: server.order(
            "flap", resource=PROXIED_SLICES.name, name=f"{LARGE}-00000", count=EVENTS
        ),
    )
    await until(lambda: counter.events == EVENTS, PATIENCE)
    event_cpu, event_seconds = time.process_time() - cpu, time.perf_counter() - start
    await flap
    rss_end = _rss()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if (len(services.objects), len(slices.objects)) != (SERVICES + 1, SERVICES + 1):
        raise AssertionError("not all objects have come")
    return {
        "services": SERVICES,
        "endpoints": SERVICES * ENDPOINTS,
        "list_cpu_seconds": list_cpu,
        "list_seconds": list_seconds,
        "event_cpu_seconds": event_cpu / EVENTS,
        "events_per_second": EVENTS / event_seconds,
        "events_per_cpu_second": EVENTS / event_cpu,
        "rss_start": rss_start,
        "rss_listed": rss_listed,
        "rss_end": rss_end,
    }


def _rss() -> float:
    """Resident memory of this process, MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))  # noqa: T201 - a command prints
