"""Correlation, partial correlation and slope, against numbers that Python computes otherwise."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from alerts.association import BY_CLUSTER, BY_NODE, Association
from alerts.attribution import EXPLAINED, RULE_TRAVERSAL, SHARE, UNEXPLAINED
from alerts.latency import P99, REQUESTS
from tests.rules import promtool
from tests.rules.promtool import close, growing, none_test, one, query_test, steady
from vipscope import metrics as m

pytestmark = pytest.mark.skipif(bool(promtool.missing()), reason=promtool.missing())

MINUTES = 90
GAP, STALE, NAN = "_", "stale", "NaN"
"""A missing sample, which Prometheus bridges; a scrape that failed; a value that is none."""

RULES = one(m.RULES, owner="kube-proxy", table="nat", **{"class": "services"})


def series(association: Association, rules: str, p99: str, load: str) -> dict[str, str]:
    labels = {"cluster": "c1", "latency_source": "probe"}
    if association is BY_NODE:
        labels["node"] = "n1"
    where = "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
    level = association.level
    return {RULES: rules, f"{P99[level]}{where}": p99, f"{REQUESTS[level]}{where}": load}


def disturbed(values: Sequence[float], draw: random.Random) -> list[str]:
    """The values with gaps, failed scrapes, NaN and infinity among them."""
    kinds = [""] * 8 + [GAP, STALE, NAN, "+Inf"]
    return [draw.choice(kinds) or repr(value) for value in values]


def as_seen(texts: Sequence[str]) -> list[float]:
    """What a query sees at each minute; NaN where nothing."""
    seen, last = [], math.nan
    for text in texts:
        if text != GAP:
            last = math.nan if text == STALE else float(text)
        seen.append(last)
    return seen


def complete(*columns: Sequence[float]) -> list[list[float]]:
    """The columns at the minutes at which all are known."""
    rows = [row for row in zip(*columns, strict=True) if all(map(math.isfinite, row))]
    return [list(column) for column in zip(*rows, strict=True)]


def residuals(y: Sequence[float], x: Sequence[float]) -> list[float]:
    line = statistics.linear_regression(x, y)
    return [b - (line.slope * a + line.intercept) for a, b in zip(x, y, strict=True)]


@pytest.mark.parametrize("association", [BY_NODE, BY_CLUSTER], ids=lambda each: each.level)
@pytest.mark.parametrize("seed", range(3))
def test_they_are_what_python_computes_whatever_is_missing(
    association: Association, seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    load = [100 + 50 * math.sin(i / 9) + draw.uniform(0, 20) for i in range(MINUTES)]
    rules = [float(int(5000 + 40 * i + load[i] + draw.uniform(0, 300))) for i in range(MINUTES)]
    p99 = [
        0.020 + rules[i] * 1e-6 * (1 - seed) + load[i] * 1e-5 + draw.uniform(0, 0.003)
        for i in range(MINUTES)
    ]
    texts = [disturbed(each, draw) for each in (rules, p99, load)]
    x, y, z = complete(*map(as_seen, texts))
    assert 30 < len(x) < 80

    r = statistics.correlation(x, y)
    partial = statistics.correlation(residuals(x, z), residuals(y, z))
    slope = statistics.linear_regression(x, y).slope * 1000 * 10_000
    assert abs(r - partial) > 0.001
    found = query_test(
        f"seed {seed}",
        series(association, *map(" ".join, texts)),
        MINUTES - 1,
        [
            close(association.correlation, r, 1e-6),
            close(association.correlation_rules_load, statistics.correlation(x, z), 1e-6),
            close(association.correlation_load_latency, statistics.correlation(z, y), 1e-6),
            close(association.partial, partial, 1e-5),
            close(association.slope, slope, 1e-6),
        ],
    )
    assert promtool.run(tmp_path, found) == ""


def said(association: Association) -> list[object]:
    return [
        association.correlation,
        association.partial,
        association.slope,
        association.breach_by_rules,
    ]


WOBBLE = " ".join(repr(0.010 + 0.001 * (i % 7)) for i in range(MINUTES))
LOAD = " ".join(repr(100.0 + i * i % 11) for i in range(MINUTES))


@pytest.mark.parametrize(
    ("title", "rules", "p99", "minutes"),
    [
        ("rules never change", steady(5000), WOBBLE, 80),
        ("the latency never changes", growing(10, 5000), steady(0.02), 80),
        ("one rule of a million comes and goes", "1000000 1000001 " * 45, WOBBLE, 80),
        ("29 points", growing(10, 5000), WOBBLE, 28),
        ("there is no latency", growing(10, 5000), "NaN " * MINUTES, 80),
        ("there are no rules", "stale", WOBBLE, 80),
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_say(
    title: str, rules: str, p99: str, minutes: int, tmp_path: Path
) -> None:
    given = series(BY_NODE, rules, p99, LOAD)
    assert promtool.run(tmp_path, none_test(title, given, minutes, said(BY_NODE))) == ""


def test_thirty_points_are_enough(tmp_path: Path) -> None:
    given = series(BY_NODE, growing(10, 5000), WOBBLE, LOAD)
    true = [f"count({each})" for each in (BY_NODE.correlation, BY_NODE.partial, BY_NODE.slope)]
    assert promtool.run(tmp_path, query_test("30 points", given, 29, true)) == ""


def test_a_load_that_explains_all_leaves_no_partial_correlation(tmp_path: Path) -> None:
    given = series(BY_NODE, growing(10, 5000), WOBBLE, growing(1, 100))
    assert promtool.run(tmp_path, none_test("load = rules", given, 60, [BY_NODE.partial])) == ""


def test_new_connections_are_the_load_where_the_rules_count_them(tmp_path: Path) -> None:
    given = series(BY_NODE, growing(10, 5000), WOBBLE, steady(7)) | {
        one(m.NEW_CONNECTIONS, namespace="a", service="b", port="c"): growing(120),
        one(m.NEW_CONNECTIONS, namespace="", service="", port=""): growing(60),
    }
    paired = BY_NODE.rules_load.y
    assert promtool.run(tmp_path, query_test("load", given, 20, [close(paired, 3.0)])) == ""


def test_the_time_to_breach_is_that_of_a_line(tmp_path: Path) -> None:
    # 10 ms and 1 ms more every 10 minutes, with 100 rules: 50 ms are reached after 400 minutes.
    given = series(BY_NODE, growing(10, 5000), growing(0.0001, 0.010), LOAD)
    left = (400 - 60) * 60.0
    true = [
        close(BY_NODE.breach_by_latency, left, 1e-6),
        close(BY_NODE.breach_by_rules, left, 1e-6),
        close(BY_NODE.slope, 100.0, 1e-6),
    ]
    assert promtool.run(tmp_path, query_test("line", given, 60, true)) == ""


@pytest.mark.parametrize(
    ("title", "rules", "p99"),
    [
        ("p99 is beyond it already", growing(10, 5000), growing(0.0001, 0.050)),
        ("p99 falls", growing(10, 5000), growing(-0.0001, 0.040)),
        ("rules grow fewer", growing(-10, 5000), growing(-0.0001, 0.040)),
    ],
)
def test_no_breach_is_predicted_where_none_comes(
    title: str, rules: str, p99: str, tmp_path: Path
) -> None:
    nothing = [BY_NODE.breach_by_latency, BY_NODE.breach_by_rules]
    given = series(BY_NODE, rules, p99, LOAD)
    assert promtool.run(tmp_path, none_test(title, given, 60, nothing)) == ""


def test_latency_is_divided_among_what_moves_with_it(tmp_path: Path) -> None:
    draw = random.Random(1)
    pending = [draw.uniform(0, 10) if i % 7 == 0 else 0.0 for i in range(MINUTES)]
    p99 = [0.020 + 0.010 * pending[i] + draw.uniform(0, 0.001) for i in range(MINUTES)]
    line = statistics.linear_regression(pending, p99)
    mean = statistics.fmean(p99)
    explained = line.slope * statistics.fmean(pending)
    cost = 0.0002
    given = series(BY_NODE, steady(5000), promtool.points(p99), LOAD) | {
        one(m.KUBE_PROXY_SYNC_PENDING): promtool.points(pending),
        one(m.DRIFT_ENDPOINTS, kind="stale"): steady(0),
        one(m.FIRST_PACKET_COST, kind="modelled"): steady(cost),
    }

    def of(metric: m.Metric, cause: str) -> str:
        return metric.select(cause=cause)

    true = [
        close(of(EXPLAINED, "synchronisation"), explained, 1e-6),
        close(of(EXPLAINED, RULE_TRAVERSAL), cost, 1e-9),
        close(UNEXPLAINED, mean - explained - cost, 1e-6),
        close(of(SHARE, "synchronisation"), explained / mean, 1e-6),
        close(f"count({SHARE})", 2),
    ]
    assert promtool.run(tmp_path, query_test("causes", given, MINUTES - 1, true)) == ""
