"""All of it measured, and as the tables and sentences of docs/scale.md."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from alerts import render
from alerts.settings import Settings
from tests.bench import machine
from tests.bench.scale import load, series, watch
from tests.bench.scale.load import Growth, Load
from tests.bench.scale.series import EXPORTER, FEW_SERVICES, INTERVAL, SERVICES, Said
from tests.bench.scale.watch import Traffic
from tests.lab.fleet import samples
from tools.generate import ROOT, replace_region

PAGE = ROOT / "docs" / "scale.md"
GIBIBYTE, MEBIBYTE = 1 << 30, 1 << 20
MODES = ("iptables", "nftables")
NODES = (100, 300, 1000)
GROWN = 100
"""Nodes whose head is followed over two hours."""
MOST_NODES = 5000
"""Of a cluster, as Kubernetes supports it."""
SHARE = 0.5
"""Of its interval that a group of rules may take: the rest is for a machine that is slower."""
RESTARTED, RESTART_SECONDS = 1000, 600
"""Pods of a Deployment that restarts, and how long that takes."""


class Measured(NamedTuple):
    """All of it."""

    nodes: Mapping[str, Said]
    """By mode, with SERVICES Services."""
    busy: Said
    cluster: Said
    loads: Sequence[Load]
    """By number of nodes, ascending."""
    growth: Growth
    traffic: Traffic


@functools.cache
def measure() -> Measured:
    """Takes half an hour, 5 GiB of memory and 10 GiB of disk."""
    nodes = {mode: series.node(mode) for mode in MODES}
    busy, cluster = series.busy_node(), series.cluster()
    return Measured(
        nodes=nodes,
        busy=busy,
        cluster=cluster,
        loads=[load.measure(busy, cluster, number) for number in NODES],
        growth=load.growth(busy, GROWN),
        traffic=watch.measure(),
    )


class Line(NamedTuple):
    """value = base + slope x nodes, by least squares."""

    base: float
    slope: float

    @classmethod
    def through(cls, points: Iterable[tuple[float, float]]) -> Line:
        """At least two points."""
        known = list(points)
        x, y = (sum(each) / len(known) for each in zip(*known, strict=True))
        slope = sum((a - x) * (b - y) for a, b in known) / sum((a - x) ** 2 for a, _ in known)
        return cls(y - slope * x, slope)

    def at(self, nodes: float) -> float:
        return self.base + self.slope * nodes


def regions(measured: Measured) -> Mapping[str, str]:
    """Name -> content of the generated regions."""
    return {
        "answer": _answer(measured),
        "limits": _limits(measured),
        "series": _series(measured),
        "rules": _rules(measured),
        "watch": _watch(measured),
        "options": _options(measured),
    }


def page(text: str, measured: Measured) -> str:
    """The page with its generated regions renewed."""
    found = {**regions(measured), "machine": f"{machine.describe()}\n"}
    for name, content in found.items():
        text = replace_region(text, name, content)
    return text


def write() -> None:
    """Renew the figures of docs/scale.md."""
    PAGE.write_text(page(PAGE.read_text(), measure()))


def memory(measured: Measured, of: Load) -> float:
    """Bytes of one Prometheus: what was seen, and what its head gains in two hours."""
    growth = measured.growth
    return of.resident + of.series * (growth.late - growth.early) / growth.series


def busiest(of: Load) -> float:
    """The largest share of its interval that a group of rules takes."""
    return max(of.groups[each] / of.intervals[each] for each in of.groups)


def _lines(measured: Measured) -> Mapping[str, Line]:
    """What grows with the nodes."""
    return {
        "series": Line.through((each.nodes, each.series) for each in measured.loads),
        "samples": Line.through((each.nodes, each.samples_per_second) for each in measured.loads),
        "memory": Line.through((each.nodes, memory(measured, each)) for each in measured.loads),
        "cores": Line.through((each.nodes, each.cores) for each in measured.loads),
    }


def _groups(measured: Measured) -> Mapping[str, tuple[Line, float]]:
    """Group of rules -> its seconds by nodes, and its interval."""
    last = measured.loads[-1]
    return {
        group: (
            Line.through((each.nodes, each.groups[group]) for each in measured.loads),
            last.intervals[group],
        )
        for group in last.groups
    }


def _slowest(measured: Measured) -> list[tuple[float, str]]:
    """Nodes at which a group of rules takes SHARE of its interval, fewest first."""
    return sorted(
        ((SHARE * interval - line.base) / line.slope, group)
        for group, (line, interval) in _groups(measured).items()
        if line.slope > 0
    )


def _answer(measured: Measured) -> str:
    restart = measured.traffic.restart(RESTARTED) / RESTART_SECONDS
    rows = [
        _row(
            f"{each.nodes:,}", f"{each.series:,}", f"{each.samples_per_second:,.0f}",
            _gib(memory(measured, each)), f"{each.cores:.2g}", _share(busiest(each)),
            _rate(restart * each.nodes), "one Prometheus",
        )
        for each in measured.loads
    ]  # fmt: skip
    lines = _lines(measured)
    then = max(line.at(MOST_NODES) / interval for line, interval in _groups(measured).values())
    rows.append(
        _row(
            f"{MOST_NODES:,}, computed", f"{lines['series'].at(MOST_NODES):,.0f}",
            f"{lines['samples'].at(MOST_NODES):,.0f}", _gib(lines["memory"].at(MOST_NODES)),
            f"{lines['cores'].at(MOST_NODES):.2g}", _share(then), _rate(restart * MOST_NODES),
            "one Prometheus of its own" if then < SHARE
            else "one Prometheus of its own, and fewer latency sources",
        )
    )  # fmt: skip
    rows.append(_row("more", "", "", "", "", "", "", "a shard for each cluster or some of them"))
    head = _row(
        "nodes", "series", "samples/s", "memory", "cores", "busiest rules",
        "API server, besides, computed", "advice",
    )  # fmt: skip
    return head + "|---|" + "---:|" * 6 + "---|\n" + "".join(rows)


def _limits(measured: Measured) -> str:
    lines = _lines(measured)
    few = measured.loads[:-1]
    last = measured.loads[-1]
    line = Line.through((each.nodes, memory(measured, each)) for each in few)
    error = line.at(last.nodes) / memory(measured, last) - 1
    nodes, group = _slowest(measured)[0]
    per_gib = GIBIBYTE / lines["memory"].slope
    return (
        f"A node costs {lines['memory'].slope / MEBIBYTE:.2g} MiB of Prometheus' memory, so a GiB"
        f" is enough for {_about(per_gib)} nodes; another million series are"
        f" {_gib(1e6 * lines['memory'].slope / lines['series'].slope)}. The line through"
        f" {' and '.join(f'{each.nodes:,}' for each in few)} nodes misses what {last.nodes:,} were"
        f" measured to take by {_percent(abs(error))}. Of the rules the group `{group}` comes first"
        f" to half of its interval, at {_about(nodes)} nodes.\n"
    )


def _series(measured: Measured) -> str:
    names = [*measured.busy.by_collector]
    names.sort(key=lambda each: (each == EXPORTER, each))
    said = {
        **{f"node, {mode}, {SERVICES:,} Services": measured.nodes[mode] for mode in MODES},
        f"busy node, iptables, {FEW_SERVICES} Services": measured.busy,
        "cluster": measured.cluster,
    }
    rows = [
        _row(each, *(str(one.by_collector.get(each, 0)) for one in said.values())) for each in names
    ]
    total = _row("all", *(str(one.series) for one in said.values()))
    return _row("collector", *said) + "|---|" + "---:|" * len(said) + "\n" + "".join(rows) + total


def _rules(measured: Measured) -> str:
    last = measured.loads[-1]
    groups = sorted(
        last.groups, key=lambda each: last.groups[each] / last.intervals[each], reverse=True
    )[:6]
    rows = [
        _row(
            f"`{group}`", f"{last.intervals[group]:.0f} s",
            *(f"{each.groups[group]:.3g} s" for each in measured.loads),
        )
        for group in groups
    ]  # fmt: skip
    head = _row("group", "every", *(f"{each.nodes:,} nodes" for each in measured.loads))
    missed = sum(each.missed for each in measured.loads)
    return (
        f"{head}|---|{'---:|' * (1 + len(measured.loads))}\n{''.join(rows)}\n"
        f"Evaluations that were left out: {missed:.0f}. Samples of history:"
        f" {', '.join(f'{each.history_samples / 1e6:.3g}' for each in measured.loads)} million."
        f" Longest scrape: {max(each.scrape_seconds for each in measured.loads) * 1000:.0f} ms.\n"
    )


def _watch(measured: Measured) -> str:
    found = measured.traffic
    thousand = 1000
    restart = found.restart(RESTARTED)
    ratio = found.event_protobuf / found.event
    rows = [
        ("an event of a slice of 100 endpoints", found.event, found.event_protobuf),
        (f"slices, {SERVICES:,} Services of ten pods, when the exporter starts",
         found.list_slices, found.list_slices_protobuf),
        (f"Services, {SERVICES:,}, when the exporter starts", found.list_services, None),
        (f"a Deployment of {RESTARTED:,} pods restarts, computed", restart, restart * ratio),
    ]  # fmt: skip
    table = "".join(
        _row(
            what, _bytes(ours), "not computed" if theirs is None else _bytes(theirs),
            _bytes(ours * thousand),
        )
        for what, ours, theirs in rows
    )  # fmt: skip
    return (
        _row("what", "a node, JSON", "kube-proxy, Protocol Buffers", "1,000 nodes, JSON")
        + "|---|---:|---:|---:|\n"
        + table
        + f"\nThe restart is {RESTARTED:,} pods times {watch.CHANGES_OF_A_POD} changes of each"
        f" (added, ready, terminating, gone) times {found.events_of_a_change:.2g} events of a slice"
        f" for a change, as counted while a Service grew to {found.grown} pods, times a full slice."
        f" Over {RESTART_SECONDS // 60} minutes that is"
        f" {_rate(restart * thousand / RESTART_SECONDS)} from the API servers to 1,000 nodes,"
        f" beside {_rate(restart * ratio * thousand / RESTART_SECONDS)} for kube-proxy. gzip would"
        f" make the lists {_percent(found.gzip_ratio)} of what they are, for"
        f" {found.gzip_cpu_seconds:.2f} s of the API server's CPU and"
        f" {found.gunzip_cpu_seconds:.2f} s of the node's, each time (zlib, level 1).\n"
    )


def _options(measured: Measured) -> str:
    last = measured.loads[-1]
    kept = render.read(Settings())
    lean = sum(each.series.partition("{")[0] in kept for each in samples(measured.busy.second))
    recorded = last.series - last.scraped
    sent = last.samples_per_second - last.scraped / INTERVAL
    return (
        f"Of a busy node's {measured.busy.series} series the rules read {lean}. They record"
        f" {recorded / last.nodes:.0f} for each node, {recorded:,} at {last.nodes:,} nodes:"
        f" that is what federation and remote write carry, {sent:,.0f} samples/s by remote write,"
        f" {_percent(sent / last.samples_per_second)} of all.\n"
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _gib(value: float) -> str:
    return f"{value / GIBIBYTE:.2g} GiB"


def _share(value: float) -> str:
    return f"{_percent(value)} of their interval"


def _percent(value: float) -> str:
    return f"{value * 100:.2g} %"


def _about(value: float) -> str:
    """Two digits."""
    size = 10 ** max(0, len(str(int(value))) - 2)
    return f"{int(value) // size * size:,}"


def _bytes(value: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _rate(bytes_per_second: float) -> str:
    return f"{_bytes(bytes_per_second)}/s"
