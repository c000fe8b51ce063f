"""Cost of the prober at its default settings: `python -m tests.bench.probe`.

Two exporters, with that collector alone, in network namespaces with the rules of 1,000 Services.
One has a target, a Service of which it is itself the endpoint: so it answers as often as it asks,
as on average in a cluster whose nodes all probe that Service. What it takes more CPU than the
other, which has no target, is the prober.
"""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from tests.bench.nftables import PORT, exporter
from tests.lab import rulesets
from tests.lab.namespace import Namespace
from tests.lab.node import POD, furnish
from tests.lab.rulesets import Endpoint
from vipscope import metrics as m

SERVICES = 1000
SECONDS = 60.0
ONLY = ("--collector.disable-defaults", "--collector.probe")


class Measurement(TypedDict):
    """Shares of one core."""

    core_share: float
    """Of the prober: its thread, its part of the event loop, and the answers."""
    idle_core_share: float
    """Of the exporter that has no target."""


def measure() -> Measurement:
    """Run both at the same time."""
    with Namespace() as busy, Namespace() as idle:
        services = rulesets.cluster(SERVICES, 1)
        own = replace(services[-1], endpoints=(Endpoint(POD["ipv4"], PORT, "node1"),))
        for namespace in (busy, idle):
            furnish(namespace)
            namespace.restore(rulesets.iptables([*services[:-1], own]))
        vip, pod = f"{own.cluster_ip}:{own.port}", f"{POD['ipv4']}:{PORT}"
        target = f"--probe.target=own=http://{vip}/healthz,direct={pod}"
        flags = (*ONLY, f"--web.listen-address={pod}")
        with exporter(busy, *flags, target) as prober, exporter(idle, *flags) as other:
            before = [_cpu_seconds(each.pid) for each in (prober, other)]
            time.sleep(SECONDS)
            after = [_cpu_seconds(each.pid) for each in (prober, other)]
            _check(busy)
    shares = [(end - start) / SECONDS for start, end in zip(before, after, strict=True)]
    return {"core_share": shares[0] - shares[1], "idle_core_share": shares[1]}


def _check(namespace: Namespace) -> None:
    """That it really probed, by both paths."""
    text = namespace.call(_metrics)
    for path in ("vip", "direct"):
        made = m.PROBE_DURATION.name + f'_count{{path="{path}",probe="own"}} '
        (count,) = [line for line in text.splitlines() if line.startswith(made)]
        if float(count.split()[-1]) < SECONDS / 8:
            raise AssertionError(count)


def _metrics() -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics") as answer:
        text: str = answer.read().decode()
    return text


def _cpu_seconds(pid: int) -> float:
    """CPU of all threads, to the nanosecond; /proc/PID/stat counts in hundredths of a second."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in tasks) / 1e9


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))  # noqa: T201 - a command prints
