"""promtool's unit tests from Python: input series in, what is expected of alerts and queries."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alerts import links, render
from alerts.rule import Alert, Group
from alerts.settings import Settings
from vipscope.metrics import Metric

SETTINGS = Settings()
SCRAPED = {"cluster": "c1", "node": "n1"}
"""What the scrape adds to each series."""

Input = Mapping[str, str]
"""Series -> its values, a minute apart, in promtool's notation."""


@dataclass(frozen=True)
class Expected:
    """An alert that fires, without the links that every alert gets."""

    severity: str
    cause: str
    labels: Mapping[str, str]
    summary: str
    description: str


@dataclass(frozen=True)
class Situation:
    """What is seen for some minutes, and the alerts of one name that fire at the end."""

    title: str
    alert: str
    series: Input
    fires: Sequence[Expected] = ()
    minutes: int = 10
    before: Sequence[Expected] | None = ()
    """What fires of them at the evaluation before the last; None: that is not told."""
    every: int = 1
    """Minutes between evaluations: long ones need not have one each minute."""


def one(metric: object, **labels: str) -> str:
    """A series as it is scraped. A metric's own labels are checked; None of them need be given."""
    declared = set(metric.labels) | {"le", *SCRAPED} if isinstance(metric, Metric) else set(labels)
    assert set(labels) <= declared, f"{metric} has no {set(labels) - declared}"
    pairs = {**SCRAPED, **labels}
    return f"{metric}{{{','.join(f'{k}={v!r}' for k, v in pairs.items())}}}".replace("'", '"')


def steady(value: float) -> str:
    """A gauge that stays as it is."""
    return f"{value:.12g}+0x600"


def growing(per_minute: float, start: float = 0) -> str:
    """A counter, or a gauge that grows."""
    return growing_for(601, per_minute, start)


def growing_for(minutes: int, per_minute: float, start: float) -> str:
    """So many values of it; others may follow."""
    return f"{start:.12g}{per_minute:+.12g}x{minutes - 1}"


def points(values: Iterable[float | None]) -> str:
    """Any values, None for a scrape that failed."""
    return " ".join("_" if each is None else repr(float(each)) for each in values)


def alert_test(situation: Situation) -> dict[str, Any]:
    """The test that just `situation.fires` fire, and not before they must."""
    times = {situation.minutes: situation.fires}
    if situation.fires and situation.before is not None:
        times[situation.minutes - situation.every] = situation.before
    return _test(
        situation.title,
        situation.series,
        alert_rule_test=[
            {
                "eval_time": f"{minutes}m",
                "alertname": situation.alert,
                "exp_alerts": [_fired(situation.alert, each) for each in fires],
            }
            for minutes, fires in times.items()
        ],
    )


def query_test(title: str, series: Input, minutes: int, true: Sequence[str]) -> dict[str, Any]:
    """The test that each of the queries yields exactly one series, whose value is 1."""
    return _test(
        title,
        series,
        promql_expr_test=[
            {
                "expr": f"sum({query}) == 1 and count({query}) == 1",
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
            for query in true
        ],
    )


def none_test(title: str, series: Input, minutes: int, nothing: Sequence[object]) -> dict[str, Any]:
    """The test that each of the queries yields nothing."""
    return _test(
        title,
        series,
        promql_expr_test=[
            {"expr": str(query), "eval_time": f"{minutes}m", "exp_samples": []} for query in nothing
        ],
    )


def close(query: object, value: float, tolerance: float = 1e-9) -> str:
    """1 where the query's value is `value`, relative to it if that is large."""
    return f"(abs({query} - {value!r}) <= bool {tolerance * max(1.0, abs(value))!r})"


def leading_to(name: str) -> list[Group]:
    """The groups with the alerts of that name and with what they read, in the order of the data."""
    groups = list(itertools.chain(*render.groups(SETTINGS).values()))
    recorded = {str(metric) for metric in render.recorded(SETTINGS).values()}
    needed: set[str] = set()
    found: list[Group] = []
    for group in reversed(groups):
        names = {each.name if isinstance(each, Alert) else str(each.series) for each in group.rules}
        if name in names or needed & names:
            found.insert(0, group)
            needed |= recorded & set(re.findall(r"[\w:]+", " ".join(r.expr for r in group.rules)))
    return found


def run(
    directory: Path,
    *tests: Mapping[str, Any],
    settings: Settings = SETTINGS,
    only: Sequence[Group] | None = None,
    every: int = 1,
) -> str:
    """What promtool finds wrong with the rendered rules, or `only` with these; "" for nothing.

    They are evaluated once in so many minutes.
    """
    groups = list(itertools.chain(*render.groups(settings).values())) if only is None else only
    (directory / "rules.yaml").write_text(render.rules(groups, settings))
    content = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{every}m",
        # Unless told, promtool evaluates the groups in any order.
        "group_eval_order": [group.name for group in groups],
        "tests": list(tests),
    }
    file = directory / "tests.yaml"
    file.write_text(yaml.safe_dump(content, width=10_000))
    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def missing() -> str:
    """Why these tests cannot run; "" when they can."""
    return "" if shutil.which("promtool") else "the command promtool is not installed"


def _test(title: str, series: Input, **tests: object) -> dict[str, Any]:
    return {
        "name": title,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        **tests,
    }


def _fired(alert: str, expected: Expected) -> dict[str, Any]:
    return {
        "exp_labels": {
            "severity": expected.severity,
            "cause": expected.cause,
            **expected.labels,
        },
        "exp_annotations": {
            "summary": expected.summary,
            "description": expected.description,
            **_links(alert, expected.labels),
        },
    }


def _links(alert: str, labels: Mapping[str, str]) -> dict[str, str]:
    runbook = f"{SETTINGS.runbooks}#{alert.lower()}"
    where = "".join(f"&var-{each}={labels[each]}" for each in links.VARIABLES if each in labels)
    board = DASHBOARDS.get(alert, "node")
    return {
        "runbook_url": runbook,
        "dashboard_url": f"{SETTINGS.dashboards}/d/vipscope-{board}?from=now-3h{where}",
    }


DASHBOARDS = {
    "VipscopeExporterDown": "exporter",
    "VipscopeClusterExporterDown": "exporter",
    "VipscopeExporterAbsent": "exporter",
    "VipscopeCollectorFailing": "exporter",
    "VipscopeSnapshotOld": "exporter",
    "VipscopeRuleGrowthWillBreakSLO": "latency",
    "VipscopeRulesSlowConnections": "latency",
    "VipscopeLatencyBudgetBurn": "latency",
    "VipscopeThresholdIsNoBucket": "latency",
    "VipscopeModeLeftovers": "migration",
    "VipscopeDeprecatedMode": "migration",
    "VipscopeConntrackFull": "ipvs-conntrack",
    "VipscopeConntrackInsertFailed": "ipvs-conntrack",
    "VipscopeConntrackDrops": "ipvs-conntrack",
    "VipscopeEmptyVirtualServer": "ipvs-conntrack",
    "VipscopeHarmfulSysctl": "ipvs-conntrack",
    "VipscopeServiceUnroutable": "service",
    "VipscopeEndpointChurn": "endpointslices",
    "VipscopeWatchStale": "endpointslices",
}
"""Alert -> the dashboard that it leads to, where that is not the node's."""
