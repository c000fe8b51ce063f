"""Where latency comes from: histograms of any unit and labelling become one set of series.

A group a source. What comes after, the dashboards included, reads only EDGE_BUCKETS and never a raw
histogram; `latency_source` tells them apart. A source without data yields nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from alerts.rule import NODE, Group, Record, buckets, by, series
from alerts.settings import MINUTE, Settings
from vipscope import metrics as m
from vipscope.metrics import Metric

RATE_WINDOW = 5 * MINUTE

EDGE = (*NODE, "latency_source", "source", "destination", "destination_namespace")
"""Who calls whom. `node` is only there where the source knows the caller's."""

EDGE_BUCKETS = series(
    "edge:vipscope_latency_seconds_bucket:rate5m",
    "Requests per second that took at most `le` seconds, by caller and destination; the bucket +Inf"
    " is all. A bound that was given in milliseconds is spelled as 50e-3.",
    (*EDGE, "le"),
)

PROBE_BOUNDS = (
    0.0001, 0.000125, 0.00015, 0.000175, 0.0002, 0.00025, 0.0003, 0.00035, 0.0004, 0.00045, 0.0005,
    0.0006, 0.0007, 0.0008, 0.0009, 0.001, 0.00125, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip
"""As vipscope.probe has them; a test holds them together, for rules see only the catalogue."""
PROXY_BOUNDS = tuple(
    each / 1000
    for each in (
        0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000,
        600_000, 1_800_000, 3_600_000,
    )
)  # fmt: skip
"""Bucket bounds of Envoy, which Istio takes over."""
LINKERD_BOUNDS = tuple(
    digit * scale / 1000 for scale in (1, 10, 100, 1000, 10_000) for digit in (1, 2, 3, 4, 5)
)
SEMANTIC_BOUNDS = (.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)  # fmt: skip
"""OpenTelemetry's semantic conventions."""


@dataclass(frozen=True)
class Source:
    """One origin of latency histograms."""

    name: str
    """The value of `latency_source`."""
    histogram: Metric
    """Name and those labels that matter."""
    unit: Literal["s", "ms"]
    source: tuple[str, ...] = ()
    """Labels that name the caller, joined by a slash; none: the histogram does not know it."""
    destination: str = ""
    namespace: str = ""
    """Label with the namespace of `destination`; "": not known."""
    matchers: Mapping[str, str] | None = None
    """Of several reports of one request, the one that is taken."""
    failures: Metric | None = None
    """Counter of requests that failed and are in no bucket: they took for ever."""
    bounds: Sequence[float] | None = None
    """Bucket bounds in seconds, where they are not the user's to choose."""

    def group(self, settings: Settings) -> Group:
        """The rule that normalises this source.

        Raises ValueError when the SLO's threshold is known not to be among its bucket bounds.
        """
        if self.bounds and not any(math.isclose(settings.threshold, each) for each in self.bounds):
            bounds = ", ".join(f"{each:g}" for each in self.bounds)
            raise ValueError(
                f"threshold {settings.threshold:g} s is no bucket bound of source {self.name}, so "
                f"the share of faster requests cannot be told; it has {bounds}"
            )
        matchers = self.matchers or {}
        window = settings.span(RATE_WINDOW)
        rate = f"rate({buckets(self.histogram, **matchers)}[{window}])"
        if self.failures:
            failed = f"rate({self.failures.select(**matchers)}[{window}])"
            rate = f'{rate}\nor label_replace({failed}, "le", "+Inf", "", "")'
        if self.unit == "ms":
            rate = _in_seconds(rate)
        expr = f"sum {by(*EDGE[:2], *EDGE[3:], 'le')} (\n{self._labelled(rate)}\n)"
        record = Record(EDGE_BUCKETS, expr, {"latency_source": self.name})
        return Group(f"vipscope-source-{self.name}", [record])

    def _labelled(self, expr: str) -> str:
        """`expr` with the labels of an edge, and no others of the same names."""
        joined = ", ".join(f'"{label}"' for label in self.source)
        expr = f'label_join({expr}, "source", "/"{joined and ", "}{joined})'
        for label, origin in (
            ("destination", self.destination),
            ("destination_namespace", self.namespace),
        ):
            if label != origin:
                expr = f'label_replace({expr}, "{label}", "$1", "{origin}", "(.*)")'
        # The node of a mesh's proxy is where it was scraped, and would split the edge.
        return expr if "node" in self.source else f'label_replace({expr}, "node", "", "", "")'


def _in_seconds(expr: str) -> str:
    """Buckets whose bounds are milliseconds: 50 -> 50e-3, and 1e+06 -> 1e+03.

    PromQL cannot divide a label, but whatever reads `le` takes an exponent.
    """
    small = f'label_replace({expr}, "le", "${{1}}e-3", "le", "([0-9.]+)")'
    return f'label_replace({small}, "le", "${{1}}e+03", "le", "([0-9.]+)e[+]0?6")'


def spellings(seconds: float) -> str:
    """A regular expression for the `le` of a bound, as all sources and Prometheus 2 and 3 spell it.

    Prometheus 3 stores 1 as 1.0; see also `_in_seconds`.

    >>> spellings(1)
    '1|1[.]0|1000e-3|1000[.]0e-3'
    """
    found = []
    for number, ending in ((seconds, ""), (seconds * 1000, "e-3")):
        text = f"{number:.12g}"
        found.append(text + ending)
        if "." not in text:
            found.append(f"{text}.0{ending}")
    return "|".join(found).replace(".", "[.]")


def _histogram(name: str, *labels: str) -> Metric:
    return Metric(name, "histogram", "Of another exporter.", labels)


SOURCES = (
    Source(
        "probe", m.PROBE_DURATION, "s",
        source=("node",), destination="probe", matchers={"path": "vip"},
        failures=m.PROBE_FAILURES, bounds=PROBE_BOUNDS,
    ),
    Source(
        "istio", _histogram("istio_request_duration_milliseconds", "reporter"), "ms",
        source=("source_workload_namespace", "source_workload"),
        destination="destination_service_name", namespace="destination_service_namespace",
        matchers={"reporter": "source"}, bounds=PROXY_BOUNDS,
    ),
    Source(
        "linkerd", _histogram("response_latency_ms", "direction"), "ms",
        source=("namespace", "deployment"), destination="dst_service", namespace="dst_namespace",
        matchers={"direction": "outbound"}, bounds=LINKERD_BOUNDS,
    ),
    Source(
        "linkerd_route", _histogram("outbound_http_route_request_duration_seconds"), "s",
        source=("namespace", "deployment"),
        destination="parent_name", namespace="parent_namespace",
    ),
    Source(
        "hubble", _histogram("hubble_http_request_duration_seconds", "reporter"), "s",
        source=("source_namespace", "source_workload"),
        destination="destination_workload", namespace="destination_namespace",
        matchers={"reporter": "client"},
    ),
    Source(
        "otel_client", _histogram("http_client_request_duration_seconds"), "s",
        source=("service_namespace", "service_name"),
        destination="server_address", bounds=SEMANTIC_BOUNDS,
    ),
    Source(
        "otel_server", _histogram("http_server_request_duration_seconds"), "s",
        destination="service_name", namespace="service_namespace", bounds=SEMANTIC_BOUNDS,
    ),
    Source(
        "tempo", _histogram("traces_service_graph_request_client_seconds"), "s",
        source=("client",), destination="server",
    ),
    Source(
        "envoy", _histogram("envoy_cluster_upstream_rq_time"), "ms",
        destination="envoy_cluster_name", bounds=PROXY_BOUNDS,
    ),
    Source(
        "generic", _histogram("http_request_duration_seconds"), "s",
        destination="service", namespace="namespace",
    ),
)  # fmt: skip
"""Every source. Hubble names workloads only with the labelsContext of Cilium's documentation."""


def groups(settings: Settings) -> list[Group]:
    """A group for each chosen source. Raises ValueError, also for a source that there is not."""
    known = {each.name: each for each in SOURCES}
    if unknown := set(settings.sources) - known.keys():
        raise ValueError(
            f"no such source: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    return [known[name].group(settings) for name in settings.sources or known]
