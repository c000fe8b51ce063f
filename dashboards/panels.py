"""The vocabulary: what a dashboard is made of. Nothing here knows Grafana's JSON.

A panel's title says what to conclude from it, its description where that comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Unit = Literal[
    "short", "percentunit", "s", "bytes", "Bps", "cps", "reqps", "ops", "ms", "none", "bool_yes_no"
]
"""Grafana's names. cps: counts per second."""

COLUMNS = 24
"""Width of Grafana's grid."""

GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"


@dataclass(frozen=True)
class Steps:
    """Colours by value: `base` up to the first step, then that of the last step that is reached."""

    base: str
    steps: tuple[tuple[float, str], ...] = ()


FACT = Steps(BLUE)
"""Neither good nor bad."""
NONE_IS_GOOD = Steps(GREEN, ((1, RED),))
FEW_ARE_BAD = Steps(GREEN, ((1, ORANGE),))
ALL_IS_GOOD = Steps(RED, ((1, GREEN),))


def high_is_bad(warning: float, critical: float) -> Steps:
    """Green, orange from `warning` on, red from `critical` on."""
    return Steps(GREEN, ((warning, ORANGE), (critical, RED)))


def low_is_bad(critical: float, warning: float) -> Steps:
    """Red, orange from `critical` on, green from `warning` on."""
    return Steps(RED, ((critical, ORANGE), (warning, GREEN)))


@dataclass(frozen=True)
class Query:
    """PromQL, and what a series of it is called: `{{label}}` stands for a label's value."""

    expr: str
    legend: str
    right: Unit | None = None
    """The unit of an axis of its own, on the right."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    expr: str
    unit: Unit = "short"
    steps: Steps = FACT


@dataclass(frozen=True)
class Link:
    """Where a click on a value leads: a dashboard, with variables that labels of the value set."""

    title: str
    uid: str
    labels: tuple[str, ...] = ()


Kind = Literal[
    "stat", "timeseries", "table", "heatmap", "bargauge", "state-timeline", "xychart", "text"
]


@dataclass(frozen=True)
class Panel:
    """A panel of any kind; made by the functions below."""

    kind: Kind
    title: str
    says: str
    """The description: what it is and what a bad value means. Of a text, the text."""
    queries: tuple[Query, ...] = ()
    unit: Unit = "short"
    steps: Steps = FACT
    width: int = 8
    height: int = 8
    link: Link | None = None
    rows: tuple[str, ...] = ()
    """Of a table and a scatter: the labels that tell rows and points apart."""
    columns: tuple[Column, ...] = ()
    """Of a table and a scatter, whose queries they are."""
    stacked: bool = False
    values: Mapping[str, tuple[str, str]] | None = None
    """Of a timeline: value -> (text, colour)."""


@dataclass(frozen=True)
class Row:
    """Panels under a heading, from left to right; each line of them fills the grid."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: the values that `label` has in the series `of`."""

    name: str
    of: str
    label: str
    default: str = ""


@dataclass(frozen=True)
class Annotation:
    """Marks on every time axis where the query yields something above 0."""

    name: str
    expr: str
    title: str
    colour: str


@dataclass(frozen=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    about: str
    variables: tuple[Variable, ...]
    annotations: tuple[Annotation, ...]
    rows: tuple[Row, ...]
    since: str = "now-6h"


def stat(title: str, says: str, expr: str, legend: str = "", **more: Any) -> Panel:
    """One number, or one for each series, with its recent course."""
    return Panel("stat", title, says, (Query(expr, legend),), **{"width": 4, "height": 4, **more})


def timeseries(title: str, says: str, *queries: Query, **more: Any) -> Panel:
    """Lines over time; `steps` are drawn across them."""
    return Panel("timeseries", title, says, queries, **{"width": 12, **more})


def bars(title: str, says: str, expr: str, legend: str, **more: Any) -> Panel:
    """A bar for each series, longest where it is worst."""
    return Panel("bargauge", title, says, (Query(expr, legend),), **more)


def heatmap(title: str, says: str, expr: str, **more: Any) -> Panel:
    """How a histogram's buckets fill over time; `unit` is that of the bounds."""
    return Panel("heatmap", title, says, (Query(expr, "{{le}}"),), **{"width": 12, **more})


def timeline(
    title: str, says: str, query: Query, values: Mapping[str, tuple[str, str]], **more: Any
) -> Panel:
    """States over time."""
    return Panel("state-timeline", title, says, (query,), values=values, **{"width": 12, **more})


def table(title: str, says: str, rows: Sequence[str], *columns: Column, **more: Any) -> Panel:
    """A row for each series of the first column; the others show what there is of these rows."""
    return Panel(
        "table", title, says, rows=tuple(rows), columns=_joined(rows, columns),
        **{"width": 12, **more},
    )  # fmt: skip


def scatter(title: str, says: str, points: Sequence[str], x: Column, y: Column) -> Panel:
    """A point for each series of `x` that has a `y`."""
    return Panel(
        "xychart", title, says, rows=tuple(points), columns=_joined(points, (x, y)),
        unit=y.unit, steps=y.steps, width=12,
    )  # fmt: skip


def text(title: str, content: str, **more: Any) -> Panel:
    """Markdown."""
    return Panel("text", title, content, **{"width": 24, "height": 4, **more})


def _joined(rows: Sequence[str], columns: Sequence[Column]) -> tuple[Column, ...]:
    first, *others = columns
    match = f"and on ({', '.join(rows)})"
    return (
        first,
        *(replace(each, expr=f"({each.expr}) {match} ({first.expr})") for each in others),
    )
