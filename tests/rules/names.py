"""Names of series in a text, and what they are the names of."""

from __future__ import annotations

import re
from collections.abc import Iterator

from alerts import render
from alerts.settings import Settings
from vipscope.metrics import CATALOGUE, Metric

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
KNOWN: dict[str, Metric] = {metric.name: metric for metric in CATALOGUE} | dict(
    render.recorded(Settings())
)


def metric_named(name: str) -> Metric | None:
    """The metric, of which a histogram has three names; None when there is none."""
    return KNOWN.get(name) or KNOWN.get(re.sub("_(bucket|sum|count)$", "", name))


def ours(text: str) -> Iterator[str]:
    """The tokens of the text that look like a series of this project."""
    for name in re.findall(NAME, text):
        if name.startswith(("vipscope_", "slo:", "sloth_slo_info")) or ":vipscope_" in name:
            yield name
