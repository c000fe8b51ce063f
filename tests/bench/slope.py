"""Does the slope that the rules record agree with what was measured?

The handshakes are those of the story, in mode iptables on this kernel. Their histogram is scraped,
the better part of an hour a size, through the recording rules, and the slope of p99 over rules set
beside a line through the raw p99s.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from alerts.association import BY_NODE
from tests.bench import story
from tests.lab.namespace import Backend
from tests.rules import promtool
from tests.rules.promtool import Input, one
from vipscope import metrics as m
from vipscope.probe.prober import BOUNDS

BACKENDS: Sequence[Backend] = ("nft", "legacy")
MINUTES, BETWEEN = 40, 7
"""Scrapes of one size, and of nothing before the next: longer than a rate looks back."""


class Slopes(NamedTuple):
    """p99 over rules, in ms per 10,000 rules."""

    recorded: float
    """By the recording rules."""
    fitted: float
    """Of a line through the p99s of the raw measurements."""


def measure() -> Mapping[Backend, Slopes]:
    """Both, on each backend of iptables."""
    return {
        backend: _slopes([story.iptables(size, backend) for size in story.SIZES])
        for backend in BACKENDS
    }


def _slopes(points: Sequence[story.Point]) -> Slopes:
    return Slopes(_recorded(points), _fitted(points))


def _scraped(points: Sequence[story.Point]) -> Input:
    """What Prometheus would have scraped: the rules, and a histogram that goes on growing."""
    bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    rules: list[str] = []
    counts: dict[str, list[str]] = {le: [] for le in bounds}
    before = dict.fromkeys(bounds, 0)
    for point in points:
        rules += [str(point["rules"])] * MINUTES + ["stale"] * BETWEEN
        for le, count in zip(bounds, itertools.accumulate(point["buckets"]), strict=True):
            counts[le] += [str(before[le] + count * (minute + 1)) for minute in range(MINUTES)]
            counts[le] += ["stale"] * BETWEEN
            before[le] += count * MINUTES
    buckets = f"{m.PROBE_DURATION}_bucket"
    return {one(m.RULES, owner="kube-proxy"): " ".join(rules)} | {
        one(buckets, probe="last", path="vip", le=le): " ".join(counts[le]) for le in bounds
    }


def _recorded(points: Sequence[story.Point]) -> float:
    minutes = len(points) * (MINUTES + BETWEEN) - BETWEEN - 1
    with tempfile.TemporaryDirectory() as directory:
        return promtool.value(Path(directory), _scraped(points), minutes, BY_NODE.slope)


def _fitted(points: Sequence[story.Point]) -> float:
    p99s = [statistics.quantiles(each["vip"], n=100, method="inclusive")[98] for each in points]
    line = statistics.linear_regression([each["rules"] for each in points], p99s)
    return line.slope * 1000 * 10_000
