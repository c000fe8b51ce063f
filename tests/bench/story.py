"""When do rules become the bottleneck? `make bench ARGS=story`.

A namespace grows from 100 to 20,000 Services in each of kube-proxy's modes. The exporter's own
prober makes connections to the last of them, the one that the kernel finds last, and straight to
its endpoint. Mode ipvs runs in User Mode Linux, whose system calls are slow, but not its kernel's
own work: there the growth means something, and not what it begins with. So mode iptables runs
there, too: what one mode costs beside another is told of one kernel.

With `--write` the table goes into docs/latency.md, and the plot beside this file.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypedDict

from tests.bench import machine, plot
from tests.lab import rulesets, uml
from tests.lab.namespace import Backend, Namespace
from tests.lab.node import POD, furnish
from tests.lab.rulesets import Endpoint, Service
from tools.generate import ROOT, replace_region
from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.collectors.nftables import Nftables
from vipscope.collectors.xtables import Xtables
from vipscope.dataplane import cost
from vipscope.dataplane.naming import KUBE_PROXY
from vipscope.probe import prober
from vipscope.probe.prober import MOST_REMEMBERED
from vipscope.settings import Settings, parse_probe_target
from vipscope.snapshot import Ruleset

PAGE = ROOT / "docs" / "latency.md"
PICTURE = ROOT / "tests" / "bench" / "story.svg"
SIZES = (100, 1000, 5000, 10_000, 20_000)
Path = Literal["vip", "direct"]
PATHS: Mapping[Path, str] = {"vip": "through the last Service", "direct": "straight"}
IPTABLES, IPTABLES_IN_UML = "iptables, legacy", "iptables, legacy, in User Mode Linux"
IPVS = "ipvs, in User Mode Linux"
PORT = 8080
SECONDS = 2.2 * MOST_REMEMBERED * 0.01
"""Of one point: enough for all the handshakes that the prober remembers, a hundred a second."""


class Point(TypedDict):
    """What was measured at one size. Seconds."""

    services: int
    rules: int
    """kube-proxy's, as vipscope_rules counts them."""
    vip: Sequence[float]
    """Each handshake through the last Service."""
    direct: Sequence[float]
    """And straight to its endpoint."""
    modelled: float | None
    """vipscope_first_packet_cost_seconds: the rules ahead of a Service of median depth."""


Story = Mapping[str, Sequence[Point]]
"""Mode -> points by size, ascending."""


@functools.cache
def measure() -> Story:
    """Grow a namespace in each mode."""
    return {
        IPTABLES: [_iptables(size, "legacy") for size in SIZES],
        "iptables, nft": [_iptables(size, "nft") for size in SIZES],
        "nftables": [_nftables(size) for size in SIZES],
        IPTABLES_IN_UML: uml.call(_iptables_in_uml, timeout=900, modules=uml.IPTABLES_MODULES),
        IPVS: uml.call(_ipvs, timeout=900, kube_ipvs0=True),
    }


def median_growth(points: Sequence[Point], path: Path) -> list[float]:
    """By how many seconds the median handshake is longer than at the first size."""
    medians = [statistics.median(point[path]) for point in points]
    return [each - medians[0] for each in medians]


def seconds_per_rule(points: Sequence[Point]) -> float:
    """The slope of the median handshake through the last Service over the rules."""
    rules = [point["rules"] for point in points]
    medians = [statistics.median(point["vip"]) for point in points]
    return statistics.linear_regression(rules, medians).slope


# --- one point ------------------------------------------------------------------------------------


def services_of(size: int) -> list[Service]:
    """So many, all with the pod as their endpoint."""
    pod = Endpoint(POD["ipv4"], PORT, "node1")
    return [replace(each, endpoints=(pod,)) for each in rulesets.cluster(size, 1)]


def _iptables(size: int, backend: Backend) -> Point:
    text, last = _iptables_text(size)
    with Namespace() as namespace:
        furnish(namespace)
        namespace.restore(text, backend)
        return namespace.call(_point, size, last, Xtables if backend == "legacy" else Nftables)


def _iptables_text(size: int) -> tuple[str, str]:
    """What kube-proxy writes, and the cluster IP that its rules compare last."""
    text = rulesets.iptables(services_of(size))
    *_, last = re.findall(r"^-A KUBE-SERVICES -d ([\d.]+)/32 .* -j KUBE-SVC-", text, re.MULTILINE)
    return text, last


def _nftables(size: int) -> Point:
    services = services_of(size)
    with Namespace() as namespace:
        furnish(namespace)
        namespace.nft(rulesets.nftables(services))
        return namespace.call(_point, size, services[-1].cluster_ip, Nftables)


def _iptables_in_uml() -> list[Point]:
    """All sizes, one after another in one kernel."""
    _furnish_uml()
    points = []
    for size in SIZES:
        text, last = _iptables_text(size)
        # The rules of the table filter that count what they drop want accounting objects first.
        text = re.sub("^.*--nfacct-name.*\n", "", text, flags=re.MULTILINE)
        subprocess.run(["iptables-legacy-restore"], input=text, text=True, check=True)
        points.append(_point(size, last, None))
    return points


def _furnish_uml() -> None:
    """Give the kernel a pod, and a way by which a VIP goes."""
    subprocess.run(["ip", "address", "add", f"{POD['ipv4']}/32", "dev", "lo"], check=True)
    subprocess.run(["ip", "route", "add", rulesets.SERVICE_RANGE, "dev", "lo"], check=True)


def _ipvs() -> list[Point]:
    """The same in mode ipvs."""
    _furnish_uml()
    services, points, done = services_of(max(SIZES)), [], 0
    last = services[0].cluster_ip  # what was added first is at the end of its hash bucket
    for size in SIZES:
        more, done = services[done:size], size
        subprocess.run(["ipvsadm", "-R"], input=rulesets.ipvs(more), text=True, check=True)
        addresses = rulesets.ipvs_addresses(more)
        subprocess.run(["ip", "-batch", "-"], input=addresses, text=True, check=True)
        points.append(_point(size, last, None))
    return points


def _point(size: int, vip: str, kind: type[Collector] | None) -> Point:
    """Probe, and read the ruleset, in the present namespace."""
    target = parse_probe_target(f"last=tcp://{vip}:80,direct={POD['ipv4']}:{PORT}")
    prober.LOOPBACK_INTERVAL = 0.05
    with socket.create_server((POD["ipv4"], PORT), backlog=4096):  # the kernel shakes hands alone
        probing = prober.Prober([target], 0.01, 5.0, random.Random(1))
        probes = probing.work(time.monotonic() + SECONDS)
        probing.close()
    if failures := {key: count for key, count in probes.failures.items() if count}:
        raise AssertionError(failures)
    ruleset = asyncio.run(_ruleset(kind)) if kind else None
    return {
        "services": size,
        "rules": _kube_proxy_rules(ruleset) if ruleset else 0,
        "vip": probes.handshakes["last", "vip"],
        "direct": probes.handshakes["last", "direct"],
        "modelled": cost.modelled(ruleset.depths, probes.loopback) if ruleset else None,
    }


async def _ruleset(kind: type[Collector]) -> Ruleset:
    collector = kind(Settings(), Budget(1.0))
    record = await collector.read()
    await collector.close()
    if not isinstance(record, Ruleset):
        raise TypeError(record)
    return record


def _kube_proxy_rules(ruleset: Ruleset) -> int:
    counts = ruleset.counts.items()
    return sum(count.rules for (_, _, owner, _), count in counts if owner == KUBE_PROXY)


# --- how it is told -------------------------------------------------------------------------------


def table(story: Story) -> str:
    """Median handshakes in Markdown."""
    sizes = " | ".join(f"{size:,} Services" for size in SIZES)
    lines = [f"| mode | connection | {sizes} |", "|---|---|" + "---|" * len(SIZES)]
    for mode, points in story.items():
        for path, text in PATHS.items():
            medians = [statistics.median(point[path]) for point in points]
            lines.append(f"| {mode} | {text} | {_microseconds(medians)} |")
        modelled = [point["modelled"] for point in points]
        if any(modelled):
            lines.append(f"| | rules of a median Service | {_microseconds(modelled)} |")
    return "\n".join([*lines, ""])


def _microseconds(seconds: Sequence[float | None]) -> str:
    return " | ".join("" if each is None else _text(each * 1e6) for each in seconds)


def _text(microseconds: float) -> str:
    return f"{microseconds:,.0f} µs" if microseconds >= 10 else f"{microseconds:.2g} µs"


def picture(story: Story) -> str:
    """By how much handshakes have grown since the first size, as SVG."""
    return plot.lines(
        "What a new connection takes longer than at 100 Services",
        "Services",
        "µs",
        [
            plot.Line(
                f"{mode}: {text}",
                [point["services"] for point in points],
                [each * 1e6 for each in median_growth(points, path)],
                colour=number,
                dashed=path == "direct",
            )
            for number, (mode, points) in enumerate(story.items())
            for path, text in PATHS.items()
        ],
    )


def write() -> None:
    """Renew the table and the plot of docs/latency.md."""
    text = f"{table(measure())}\n{machine.describe()}\n"
    PAGE.write_text(replace_region(PAGE.read_text(), "story", text))
    PICTURE.write_text(picture(measure()))
