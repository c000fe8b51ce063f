"""What the rules look back on: blocks of recorded series, as long as the longest window that a rule
reads of each.

The series are those that a Prometheus has just recorded, with a point for each evaluation; values
go up and down by a tenth at random, so that they take as much room as real ones.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from alerts import render
from alerts.rule import Record
from alerts.settings import DAY, HOUR, MINUTE, Settings
from tests.lab.prometheus import Labels, Prometheus

BLOCK = 54 * int(HOUR)
"""Seconds of a block, counted from the epoch: to this Prometheus's own grow in a month."""
UNITS = {"m": MINUTE, "h": HOUR, "d": DAY}
DIFFERENT = 997
"""Values that a series goes through before it repeats."""

Recorded = Mapping[str, Sequence[tuple[Labels, float]]]
"""Name -> series with a value."""


class Kept(NamedTuple):
    """What the rules need of a recorded series. Seconds."""

    window: float
    """The longest that a rule reads."""
    step: int
    """Between two points."""


def needed() -> Mapping[str, Kept]:
    """By name of a recorded series; of those over whose last hour at least a rule looks."""
    groups = [group for groups in render.groups(Settings()).values() for group in groups]
    steps = {
        str(rule.series): int(group.interval or Settings().scrape_interval)
        for group in groups
        for rule in group.rules
        if isinstance(rule, Record)
    }
    windows = dict.fromkeys(steps, 0.0)
    for rule in (rule for group in groups for rule in group.rules):
        for name, count, unit in re.findall(r"([a-z_:0-9]+)(?:{[^}]*})?\[(\d+)([mhd])", rule.expr):
            if name in windows:
                windows[name] = max(windows[name], int(count) * UNITS[unit])
    return {name: Kept(window, steps[name]) for name, window in windows.items() if window >= HOUR}


def missing(server: Prometheus) -> set[str]:
    """What of `needed` the server has not recorded yet."""
    names = "|".join(needed())
    found = server.query(f'group by (__name__) ({{__name__=~"{names}"}})')
    return needed().keys() - {labels["__name__"] for labels, _ in found}


def recorded(server: Prometheus) -> Recorded:
    """What of `needed` the server has now."""
    return {name: server.query(name) for name in needed()}


def write(directory: Path, series: Recorded, end: float) -> int:
    """Fill `directory`/data with blocks that end then. Returns the number of samples."""
    kept, samples = needed(), 0
    begin = end - max(kept[name].window for name in series)
    for block in range(int(begin) // BLOCK * BLOCK, int(end), BLOCK):
        text = directory / "history.openmetrics"

        def times(name: str, block: int = block) -> range:
            window, step = kept[name]
            first = max(block, int(end - window) // step * step)
            return range(first, min(block + BLOCK, int(end)), step)

        with text.open("w") as file:
            for part in _lines(series, times):
                file.write(part)
                samples += part.count("\n")
            file.write("# EOF\n")
        subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "--max-block-duration=54h", "openmetrics",
             text, directory / "data"],
            check=True, capture_output=True,
        )  # fmt: skip
        text.unlink()
    return samples


def _lines(series: Recorded, times: Callable[[str], range]) -> Iterator[str]:
    chance = random.Random(1)
    spread = [0.9 + 0.2 * chance.random() for _ in range(DIFFERENT)]
    for name, found in series.items():
        ends = [f" {time}\n" for time in times(name)]
        for labels, value in found:
            pairs = ",".join(f'{k}="{v}"' for k, v in labels.items() if k != "__name__")
            head = f"{name}{{{pairs}}} "
            values = [repr(each * value) for each in spread]
            yield "".join(head + values[i % DIFFERENT] + end for i, end in enumerate(ends))
