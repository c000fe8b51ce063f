"""A real Prometheus that scrapes a fleet and evaluates the rules, over a month of their history.

Its targets are on loopback, one process tells them all, and only Prometheus' own memory and CPU are
counted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from alerts import prometheus, slo
from alerts.settings import HOUR, MINUTE, Settings
from tests.bench.scale import history
from tests.bench.scale.series import INTERVAL, Said
from tests.lab.fleet import fleet, targets
from tests.lab.prometheus import Prometheus
from tests.lab.waiting import wait

RULES = Path(__file__).parents[3] / "alerts" / "rendered"
SETTLE, WATCH = 75.0, 70.0
"""Seconds until each target and each group has had its turn, and for which is then measured."""
PATIENCE = 400.0
"""Seconds until each rule has recorded something."""
EARLY, HURRY = 10 * MINUTE, 2 * HOUR
"""Seconds that nodes tell of in a hurry, when memory is looked at."""
HURRIED_INTERVAL = 0.4
"""Seconds between these scrapes."""


class Load(NamedTuple):
    """Of one Prometheus."""

    nodes: int
    series: int
    """In its head, what the rules record included."""
    scraped: int
    """Of these, what comes from exporters, Prometheus' own five of each target included."""
    samples_per_second: float
    resident: float
    """Bytes, the most that was seen."""
    cores: float
    scrape_seconds: float
    """The longest scrape."""
    groups: Mapping[str, float]
    """Seconds that a group of rules takes, over a window's whole length of history."""
    intervals: Mapping[str, float]
    """Seconds in which it should be done."""
    missed: float
    """Evaluations that were left out because the last one still ran."""
    history_samples: int


def measure(node: Said, cluster: Said, nodes: int) -> Load:
    """Scrape and evaluate; then once more, over the history of what has been recorded."""
    with (
        TemporaryDirectory() as name,
        fleet(node.first, node.second, INTERVAL) as exporters,
        fleet(cluster.first, cluster.second, INTERVAL) as of_cluster,
    ):
        directory = Path(name)
        config = _config(exporters, of_cluster, nodes)
        begun = time.time()
        with _prometheus(directory, config) as server:
            seldom = slo.HOURLY[slo.TOTAL]  # the last that is recorded of a node
            wait(lambda: len(server.query(str(seldom))) == nodes, PATIENCE)
            wait(lambda: not history.missing(server), PATIENCE, lambda: history.missing(server))
            series = history.recorded(server)
        samples = history.write(directory, series, begun - 60)
        with _prometheus(directory, config) as server:
            time.sleep(SETTLE)
            return _load(server, nodes, samples)


class Growth(NamedTuple):
    """Of a Prometheus without rules, over two hours of scrapes."""

    series: int
    early: float
    """Resident bytes after 10 minutes' scrapes."""
    late: float
    """After two hours'."""


def growth(node: Said, nodes: int) -> Growth:
    """How much more memory a head takes that holds two hours."""
    with (
        TemporaryDirectory() as name,
        fleet(node.first, node.second, INTERVAL, hurry=HURRY) as exporters,
    ):
        config = {
            "global": {"scrape_interval": f"{HURRIED_INTERVAL * 1000:.0f}ms",
                       "scrape_timeout": f"{HURRIED_INTERVAL * 1000:.0f}ms"},
            "scrape_configs": [{"job_name": "vipscope",
                                "static_configs": targets(exporters, _nodes(nodes))}],
        }  # fmt: skip
        with _prometheus(Path(name), config) as server:
            early = _resident_after(server, nodes, EARLY)
            late = _resident_after(server, nodes, HURRY)
            return Growth(int(_own(server, "prometheus_tsdb_head_series")), early, late)


def _resident_after(server: Prometheus, nodes: int, seconds: float) -> float:
    """Bytes, once each node has told of so many seconds."""
    scrapes = "prometheus_target_interval_length_seconds_count"
    wait(lambda: _own(server, scrapes) >= nodes * seconds / INTERVAL, PATIENCE)
    return _own(server, "process_resident_memory_bytes")


def _nodes(nodes: int) -> Mapping[str, str]:
    return {f"node-{number:04}": "production" for number in range(nodes)}


def _config(exporters: str, of_cluster: str, nodes: int) -> dict[str, Any]:
    config = prometheus.config(Settings(), rules=f"{RULES}/*.yaml")
    (job,) = config["scrape_configs"]
    told = [
        *targets(exporters, _nodes(nodes)),
        *targets(of_cluster, {"node-0000": "production"}, "vipscope-cluster"),
    ]
    return {**config, "alerting": {}, "scrape_configs": [{**job, "static_configs": told}]}


def _prometheus(directory: Path, config: Mapping[str, Any]) -> Prometheus:
    return Prometheus(directory, config, "--storage.tsdb.retention.time=35d")


def _load(server: Prometheus, nodes: int, history_samples: int) -> Load:
    busy, appended = (
        _own(server, each)
        for each in ("process_cpu_seconds_total", "prometheus_tsdb_head_samples_appended_total")
    )
    begun, resident = time.monotonic(), 0.0
    longest: dict[str, float] = {}
    while (passed := time.monotonic() - begun) < WATCH:
        time.sleep(5)
        resident = max(resident, _own(server, "process_resident_memory_bytes"))
        for group, seconds in _groups(
            server, "prometheus_rule_group_last_duration_seconds"
        ).items():
            longest[group] = max(longest.get(group, 0.0), seconds)
    passed = time.monotonic() - begun
    busy = _own(server, "process_cpu_seconds_total") - busy
    appended = _own(server, "prometheus_tsdb_head_samples_appended_total") - appended
    ((_, scrape_seconds),) = server.query("max(scrape_duration_seconds)")
    ((_, scraped),) = server.query("sum(scrape_samples_post_metric_relabeling) + 5 * count(up)")
    return Load(
        nodes=nodes,
        series=int(_own(server, "prometheus_tsdb_head_series")),
        scraped=int(scraped),
        samples_per_second=appended / passed,
        resident=resident,
        cores=busy / passed,
        scrape_seconds=scrape_seconds,
        groups=longest,
        intervals=_groups(server, "prometheus_rule_group_interval_seconds"),
        missed=sum(_groups(server, "prometheus_rule_group_iterations_missed_total").values()),
        history_samples=history_samples,
    )


def _own(server: Prometheus, name: str) -> float:
    return sum(value for _, value in server.own(name))


def _groups(server: Prometheus, name: str) -> dict[str, float]:
    """Of each group of rules, by its name without the file's."""
    return {re.sub(".*;", "", labels["rule_group"]): value for labels, value in server.own(name)}
