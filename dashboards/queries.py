"""What several dashboards ask: selections by the variables, the variables, and the annotations."""

from __future__ import annotations

from dataclasses import replace

from alerts import fleet, growth, latency
from alerts.rule import NODE, by, series
from dashboards.panels import BLUE, ORANGE, RED, Annotation, Link, Variable
from vipscope import metrics as m
from vipscope.metrics import Metric

ALERTS = series(
    "ALERTS", "1 for each alert that Prometheus has.",
    (*NODE, "alertname", "alertstate", "severity", "cause"),
)  # fmt: skip

HERE = {"cluster": "$cluster"}
THIS_NODE = {**HERE, "node": "$node"}
THIS_SOURCE = {**HERE, "latency_source": "$latency_source"}
THIS_SERVICE = {**HERE, "namespace": "$namespace", "service": "$service"}

SHOWN = 10
"""Series that a ranking leaves."""
WIDE = "[$__rate_interval]"


def pick(metric: Metric, where: dict[str, str], **matchers: str) -> str:
    """The selector; see `Metric.select`. What the scrape adds are labels of every metric."""
    scraped = replace(metric, labels=tuple(dict.fromkeys((*metric.labels, *NODE))))
    return scraped.select(**where, **matchers)


def bucket(histogram: Metric) -> Metric:
    """The series of a histogram's buckets."""
    return replace(histogram, name=f"{histogram}_bucket", kind="gauge",
                   labels=(*histogram.labels, "le"))  # fmt: skip


def rate(metric: Metric, where: dict[str, str], **matchers: str) -> str:
    """Per second, over what suits the panel's resolution."""
    return f"rate({pick(metric, where, **matchers)}{WIDE})"


def summed(expr: str, *labels: str, how: str = "sum") -> str:
    """Over all but the labels: two replicas, or all series of a node."""
    return f"{how} {by(*labels)} ({expr})" if labels else f"{how}({expr})"


def most(expr: str, shown: int = SHOWN) -> str:
    """The highest."""
    return f"topk({shown}, {expr})"


def quantile(share: float, buckets: str) -> str:
    """What `share` of the values do not exceed, of the rates of buckets by `le` alone."""
    return f"histogram_quantile({share:g}, {buckets})"


def firing(*labels: str, **matchers: str) -> str:
    """Alerts of vipscope that fire, counted by the labels."""
    found = pick(ALERTS, HERE, alertname="~Vipscope.+", alertstate="firing", **matchers)
    return f"count {by(*labels)} ({found})"


def to(title: str, uid: str, *labels: str) -> Link:
    """A click on a value leads there, with its labels as variables."""
    return Link(title, uid, labels)


VARIABLES = (
    Variable("cluster", str(fleet.EXPORTERS), "cluster"),
    Variable("node", pick(fleet.NODE_MODES, HERE), "node"),
    Variable(
        "latency_source", pick(latency.P99["cluster"], HERE), "latency_source", default="probe"
    ),
)
"""Of every dashboard, so that links carry them from one to the next."""

_SERVICES = "|".join(
    map(str, (fleet.CONNECTIONS, fleet.SERVICE_UNROUTABLE, fleet.SERVICE_DRIFT,
              m.SERVICE_ENDPOINT_CHANGES))
)  # fmt: skip
_NAMED = f'{{__name__=~"{_SERVICES}",cluster="$cluster"%s}}'
SERVICE_VARIABLES = (
    Variable("namespace", _NAMED % ',namespace!=""', "namespace"),
    Variable("service", _NAMED % ',namespace="$namespace"', "service"),
)


def marks(*more: Annotation) -> tuple[Annotation, ...]:
    """What every dashboard marks on its time axes, over the cluster, and more."""
    modes = pick(growth.PROXY_MODES, HERE)
    return (
        Annotation("Mode switches", f"changes({modes}[5m]) > 0",
                   "Nodes in mode {{mode}} changed", BLUE),
        Annotation("Full rule rewrites", f"{pick(fleet.REWRITES, HERE)} > 0",
                   "A node's rules were rewritten", ORANGE),
        Annotation("Alerts", firing("alertname", "severity", severity="~critical|warning"),
                   "{{alertname}}, {{severity}}", RED),
        *more,
    )  # fmt: skip
