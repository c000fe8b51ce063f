"""The catalogue: every metric that vipscope exports, spelled once.

Exposition, recording rules, dashboards and METRICS.md all take names and labels from here, so a typo
is a NameError and an undeclared label an exception, never a silent hole in a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family

Kind = Literal["gauge", "counter", "histogram"]
Role = Literal["node", "cluster", "both"]
Stability = Literal["stable", "experimental"]


@dataclass(frozen=True)
class Metric:
    """One metric of the public contract. `str()` of it is its PromQL name."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    role: Role = "node"
    section: str = ""
    stability: Stability = "stable"

    def __post_init__(self) -> None:
        if (self.kind == "counter") != self.name.endswith("_total"):
            raise ValueError(f"{self.name}: counters, and only they, end in _total")

    def __str__(self) -> str:
        return self.name

    def select(self, **matchers: str) -> str:
        """The PromQL selector with equality matchers, or regular ones where the value starts with `~`.

        >>> RULES.select(owner="kube-proxy", table="~nat|filter")
        'vipscope_rules{owner="kube-proxy",table=~"nat|filter"}'
        """
        for label in matchers:
            if label not in self.labels:
                raise ValueError(f"{self.name} has no label {label!r}")
        parts = (
            f'{label}=~"{value[1:]}"' if value.startswith("~") else f'{label}="{value}"'
            for label, value in matchers.items()
        )
        return f"{self.name}{{{','.join(parts)}}}"


class Samples:
    """The samples of one metric on their way to a prometheus_client family."""

    __slots__ = ("family", "metric")

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        families = {
            "gauge": GaugeMetricFamily,
            "counter": CounterMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        self.family: Family = families[metric.kind](
            metric.name, metric.help, labels=metric.labels or None
        )

    def add(self, *values: str, value: float) -> Samples:
        """Add a sample. Raises ValueError when label values and labels differ in number."""
        if len(values) != len(self.metric.labels):
            raise ValueError(f"{self.metric.name} takes {self.metric.labels}, got {values}")
        self.family.add_metric(values, value)  # type: ignore[attr-defined]
        return self
