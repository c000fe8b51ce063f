"""Does the slope that the rules record agree with what was measured? `python -m tests.bench.slope`.

A namespace grows from 100 to 20,000 Services in mode iptables; the prober's handshakes through the
last of them are measured on this kernel. Their histogram is then scraped, an hour a size, through
the recording rules, and the slope of p99 over rules set beside a line through the raw p99s.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from alerts.association import BY_NODE
from tests.bench import story
from tests.lab.namespace import Backend
from tests.rules import promtool
from tests.rules.promtool import Input, one
from vipscope import metrics as m
from vipscope.probe.prober import BOUNDS

SIZES = (100, 5000, 10_000, 15_000, 20_000)
BACKENDS: Sequence[Backend] = ("nft", "legacy")
MINUTES, BETWEEN = 40, 7
"""Scrapes of one size, and of nothing before the next: longer than a rate looks back."""


def scraped(points: Sequence[story.Point]) -> Input:
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


def recorded(points: Sequence[story.Point]) -> float:
    """The slope by the recording rules, in ms per 10,000 rules."""
    minutes = len(points) * (MINUTES + BETWEEN) - BETWEEN - 1
    with tempfile.TemporaryDirectory() as directory:
        return promtool.value(Path(directory), scraped(points), minutes, BY_NODE.slope)


def fitted(points: Sequence[story.Point]) -> float:
    """The slope of a line through the p99s of the raw measurements, in ms per 10,000 rules."""
    p99s = [statistics.quantiles(each["vip"], n=100, method="inclusive")[98] for each in points]
    line = statistics.linear_regression([each["rules"] for each in points], p99s)
    return line.slope * 1000 * 10_000


def main() -> None:
    """Measure and print."""
    for backend in BACKENDS:
        points = [story.iptables(size, backend) for size in SIZES]
        by_rules, by_hand = recorded(points), fitted(points)
        sys.stdout.write(
            f"{backend}: recorded {by_rules:.4f}, fitted {by_hand:.4f} ms per 10,000 rules,"
            f" ratio {by_rules / by_hand:.2f}\n"
        )


if __name__ == "__main__":
    main()
