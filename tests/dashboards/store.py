"""A real Prometheus over a simulated history: samples and what the rules record become its blocks.

promtool evaluates a rule over the past by asking a Prometheus, so rules that read recorded series
have to wait until those are there: they are evaluated level by level.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from alerts import render
from alerts.rule import Alert, Record
from alerts.settings import Settings
from dashboards import queries
from tests.dashboards import history
from tests.lab.prometheus import Prometheus, missing

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_DATA = "data"
"""As Prometheus has it."""
_RULES = "rules.yaml"
_ONE_BLOCK = "--max-block-duration=48h"
_DENSE = history.END - history.HOUR
_LOOKBACK = 5 * history.MINUTE - 1
"""Seconds for which a sample is seen: less than between evaluations, so that what is recorded once
is not seen twice by the next level."""
_PHASES = (
    # promtool evaluates at whole intervals and a bit more, by a hash of the rules' file and group,
    # the same for all.
    (history.START, _DENSE, _LOOKBACK + 1),
    (_DENSE + history.MINUTE, history.END, history.MINUTE),
)
"""From, to, and seconds between evaluations."""

LACKING = missing("promtool", "prometheus")
"""What this machine lacks for it, in words; "" when nothing."""

Labels = Mapping[str, str]
Sample = tuple[Labels, list[tuple[float, float]]]


def scrape(directory: Path, nodes: int, wanted: Collection[str]) -> None:
    """Fill the directory with the history of that many nodes.

    `wanted` are the names of the series that are needed.
    """
    text = directory / "history.openmetrics"
    with text.open("w") as file:
        file.writelines(history.lines(nodes, wanted))
    _promtool(directory, "openmetrics", text.name, _DATA)
    text.unlink()


def make(directory: Path, nodes: int, settings: Settings, wanted: Collection[str]) -> None:
    """The same, and all that is recorded of it."""
    scrape(directory, nodes, wanted)
    for level in _levels(settings):
        groups = {"groups": [{"name": "level", "rules": level}]}
        (directory / _RULES).write_text(render.to_yaml(groups))
        with Store(directory) as store:  # which sees the blocks that there were when it started
            for start, end, step in _PHASES:
                _promtool(
                    directory, "rules", f"--url={store.url}", f"--start={start}", f"--end={end}",
                    f"--eval-interval={step}s", f"--output-dir={_DATA}", _RULES,
                )  # fmt: skip


def copy(made: Path, directory: Path) -> None:
    """The same in another directory, for a Prometheus of its own. Blocks never change."""
    skipped = shutil.ignore_patterns("wal", "chunks_head", "lock", "queries.active")
    shutil.copytree(made / _DATA, directory / _DATA, ignore=skipped, copy_function=os.link)


class Store(Prometheus):
    """Prometheus on loopback, over what `make` made. Nothing is scraped or evaluated."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            directory, {}, f"--query.lookback-delta={_LOOKBACK}s",
            "--storage.tsdb.retention.time=100y",
        )  # fmt: skip

    def instant(self, expr: str) -> list[Sample]:
        """(labels, [(time, value)]) of each series that the query yields at the end."""
        found = self._ask("query", query=expr, time=history.END)
        return [(each["metric"], [_point(each["value"])]) for each in found]

    def course(self, expr: str, step: float) -> list[Sample]:
        """The same of each step of the day."""
        found = self._ask(
            "query_range", query=expr, start=history.START, end=history.END, step=step
        )
        return [(each["metric"], [*map(_point, each["values"])]) for each in found]

    def _ask(self, what: str, **parameters: object) -> list[dict[str, Any]]:
        data = urllib.parse.urlencode(parameters).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{what}", data, timeout=60) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters['query']}: {error.read().decode()}") from error
        return found


def _promtool(directory: Path, kind: str, *arguments: str) -> None:
    done = subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", _ONE_BLOCK, kind, *arguments],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def _point(pair: Sequence[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def _levels(settings: Settings) -> list[list[dict[str, Any]]]:
    """All rules, each later than those whose series it reads.

    An alert is what Prometheus would record of it, without the time that it waits.
    """
    rules = [
        rule
        for groups in render.groups(settings).values()
        for group in groups
        for rule in group.rules
    ]
    made: dict[str, list[str]] = {}
    for rule in rules:
        if isinstance(rule, Record):
            made.setdefault(str(rule.series), []).append(rule.expr)

    @functools.cache
    def level(name: str) -> int:
        return 1 + max(map(above, made[name]))

    def above(expr: str) -> int:
        return max((level(name) for name in NAME.findall(expr) if name in made), default=-1)

    found: dict[int, list[dict[str, Any]]] = {}
    for rule in rules:
        place = level(str(rule.series)) if isinstance(rule, Record) else 1 + above(rule.expr)
        found.setdefault(place, []).append(_as_record(rule))
    return [found[each] for each in sorted(found)]


def _as_record(rule: Record | Alert) -> dict[str, Any]:
    if isinstance(rule, Record):
        return {"record": str(rule.series), "expr": rule.expr, "labels": dict(rule.labels)}
    labels = {
        "alertname": rule.name, "alertstate": "firing", "severity": rule.severity,
        "cause": rule.cause,
    }  # fmt: skip
    return {"record": str(queries.ALERTS), "expr": f"({rule.expr}) * 0 + 1", "labels": labels}
