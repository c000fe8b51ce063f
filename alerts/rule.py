"""The vocabulary: recorded series, the rules that record them, alerts, and groups of both.

A recorded series is a `Metric` like an exported one: spelled once, its labels declared, its `str()`
the name. So in rules, tests and dashboards alike a typo is a NameError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vipscope.metrics import Metric

Severity = Literal["critical", "warning", "info"]
"""A page; a ticket; a line for whoever looks."""

CLUSTER = ("cluster",)
NODE = ("cluster", "node")
"""What the scrape adds. Every aggregation keeps it."""

LINE = 100
"""Characters of a rendered expression that go on one line."""


def series(name: str, text: str, labels: Sequence[str]) -> Metric:
    """A recorded series, `level:metric:operations`."""
    return Metric(name, "gauge", text, tuple(labels))


@dataclass(frozen=True)
class Record:
    """A recording rule."""

    series: Metric
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Alert:
    """An alerting rule. Its texts are Prometheus templates."""

    name: str
    """Also, in lower case, the anchor of its runbook."""
    severity: Severity
    cause: str
    """What is wrong, in a word: alerts of one cause are one trouble (see `alertmanager`)."""
    expr: str
    summary: str
    description: str
    dashboard: str
    """uid of the dashboard to look at."""
    lasting: float = 0
    """Seconds for which `expr` must hold."""


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated together and in order."""

    name: str
    rules: Sequence[Record | Alert]
    interval: float | None = None
    """Seconds between evaluations; None: Prometheus's own."""


def buckets(histogram: Metric, **matchers: str) -> str:
    """The selector of a histogram's buckets; see `Metric.select`."""
    selector = histogram.select(**matchers).removeprefix(str(histogram)) if matchers else ""
    return f"{histogram}_bucket{selector}"


def by(*labels: str) -> str:
    """The clause `by (...)`, with cluster and node as the labels name them."""
    return f"by ({', '.join(labels)})"


def on(*labels: str) -> str:
    """The clause `on (...)`."""
    return f"on ({', '.join(labels)})"


def finite(expr: object) -> str:
    """What of `expr`, which is never negative, is a number: without NaN and infinity.

    One quiet histogram's NaN would spread over every sum and average.
    """
    return f"(({expr} >= 0) < +Inf)"


def layout(expr: str) -> str:
    """An expression for people: a short one on one line, else its set operators begin lines."""
    one_line = " ".join(expr.split()).replace("( ", "(").replace(" )", ")")
    if len(one_line) <= LINE:
        return one_line
    lines, depth = [""], 0
    for word in one_line.split(" "):
        if word in ("and", "or", "unless"):
            lines.append("  " * depth + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
        depth += word.count("(") - word.count(")")
    return "\n".join(lines)
