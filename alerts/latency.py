"""Latency of each edge, node and cluster, from the normalised buckets."""

from __future__ import annotations

from alerts.rule import CLUSTER, NODE, Group, Record, by, finite, series
from alerts.sources import EDGE, EDGE_BUCKETS

PERCENTILES = (50, 90, 99)

CLUSTER_SOURCE = (*CLUSTER, "latency_source")
NODE_SOURCE = (*NODE, "latency_source")

_LEVELS = {"edge": EDGE, "node": NODE_SOURCE, "cluster": CLUSTER_SOURCE}
_SCOPES = {
    "edge": "by caller and destination",
    "node": "by the caller's node, of the sources that know it",
    "cluster": "by source, over the cluster",
}

BUCKETS = {"edge": EDGE_BUCKETS} | {
    level: series(
        f"{level}:vipscope_latency_seconds_bucket:rate5m",
        f"Requests per second that took at most `le` seconds, {_SCOPES[level]}.",
        (*_LEVELS[level], "le"),
    )
    for level in ("node", "cluster")
}
"""Level -> request rates by bucket."""
LATENCY = {
    (level, percentile): series(
        f"{level}:vipscope_latency_seconds:p{percentile}",
        f"Seconds within which {percentile} % of requests are answered, {_SCOPES[level]}.",
        labels,
    )
    for level, labels in _LEVELS.items()
    for percentile in PERCENTILES
}
"""(level, percentile) -> series."""
REQUESTS = {
    level: series(
        f"{level}:vipscope_requests:rate5m", f"Requests per second, {_SCOPES[level]}.", labels
    )
    for level, labels in _LEVELS.items()
}

P99 = {level: LATENCY[level, 99] for level in _LEVELS}
"""Level -> its 99th percentile."""


def _level(level: str) -> list[Record]:
    source = BUCKETS[level]
    quantiles = [
        Record(
            LATENCY[level, percentile],
            finite(f"histogram_quantile({percentile / 100:g}, {source})"),
        )
        for percentile in PERCENTILES
    ]
    requests = Record(REQUESTS[level], f"sum without (le) ({source.select(le='+Inf')})")
    return [*quantiles, requests]


def _sum(level: str, selector: str) -> Record:
    return Record(BUCKETS[level], f"sum {by(*_LEVELS[level], 'le')} ({selector})")


def groups() -> list[Group]:
    """The three levels, each with its quantiles and its request rate."""
    return [
        Group("vipscope-latency-edge", _level("edge")),
        Group(
            "vipscope-latency-node",
            [_sum("node", EDGE_BUCKETS.select(node="~.+")), *_level("node")],
        ),
        Group("vipscope-latency-cluster", [_sum("cluster", str(EDGE_BUCKETS)), *_level("cluster")]),
    ]
