"""Service: whether it routes, to whom, how evenly, and how fast."""

from __future__ import annotations

from alerts import fleet, latency, links
from alerts.settings import Settings
from dashboards.panels import (
    NONE_IS_GOOD,
    Board,
    Column,
    Query,
    Row,
    high_is_bad,
    stat,
    table,
    timeseries,
)
from dashboards.queries import (
    HERE,
    SERVICE_VARIABLES,
    THIS_SERVICE,
    VARIABLES,
    marks,
    most,
    pick,
    rate,
    summed,
    to,
)
from vipscope import metrics as m

CALLED = {**HERE, "destination": "$service"}


def board(settings: Settings) -> Board:
    """The dashboard."""
    limit = settings.threshold
    p99_steps = high_is_bad(limit / 2, limit)
    uneven = high_is_bad(2, 4)
    # 0 only where somebody looks.
    unroutable = (
        f"count({pick(fleet.SERVICE_UNROUTABLE, THIS_SERVICE)})"
        f" or sum({pick(fleet.UNROUTABLE, HERE)}) * 0"
    )
    drift = (
        f"max({pick(fleet.SERVICE_DRIFT, THIS_SERVICE)}) or sum({pick(fleet.DRIFTING, HERE)}) * 0"
    )
    return Board(
        links.SERVICE,
        "Service",
        "Whether a Service routes, to whom, how evenly and how fast.",
        (*VARIABLES, *SERVICE_VARIABLES),
        marks(),
        (
            Row(
                "Does it route?",
                (
                    stat(
                        "Ports that route to nobody: their clients are refused",
                        "Ports of this Service without an endpoint to send to. The table says why.",
                        unroutable, "ports", steps=NONE_IS_GOOD, width=6,
                    ),
                    stat(
                        "Nodes whose kernel differs from the API for it",
                        "On the port on which most do. Of a node that drifts much only the oldest"
                        " are known by name.",
                        drift, "nodes", steps=NONE_IS_GOOD, width=6,
                    ),
                    stat(
                        "New connections: 0 may be a Service that nobody reaches",
                        "Per second, by the rules' own packet counters. No data: not one of the"
                        " busiest Services, or not mode iptables.",
                        f"sum({pick(fleet.CONNECTIONS, THIS_SERVICE)})", "new",
                        unit="cps", width=6,
                    ),
                    stat(
                        "Imbalance: far above 1, one backend has the work of several",
                        "The busiest backend's new connections over the mean, on the node where"
                        " that is worst.",
                        f"max({pick(fleet.IMBALANCE, THIS_SERVICE)})", "busiest",
                        unit="none", steps=uneven, width=6,
                    ),
                    table(
                        "Why Services route to nobody: look the reason up",
                        "All Services that do, so that a wider trouble shows. seen by: nodes, or"
                        " exporters of the cluster, that say so.",
                        ("service", "namespace", "port", "reason"),
                        Column("seen by", most(pick(fleet.SERVICE_UNROUTABLE, HERE), 50),
                               steps=NONE_IS_GOOD),
                        link=to("This Service", links.SERVICE, "namespace", "service"),
                    ),
                    table(
                        "What nodes hold wrong",
                        "missing: the kernel lacks it. orphaned: the API no longer wants it."
                        " stale_endpoints: it still sends to backends that are gone.",
                        ("service", "namespace", "port", "kind"),
                        Column("nodes", most(pick(fleet.SERVICE_DRIFT, HERE), 50),
                               steps=NONE_IS_GOOD),
                        link=to("This Service", links.SERVICE, "namespace", "service"),
                    ),
                ),
            ),
            Row(
                "To whom, and how evenly",
                (
                    timeseries(
                        "New connections by port: a drop is clients that are lost",
                        "Per second, over all nodes that count this Service.",
                        Query(pick(fleet.CONNECTIONS, THIS_SERVICE), "{{port}}"), unit="cps",
                    ),
                    timeseries(
                        "Imbalance by port: a rise is a backend that has the work of others",
                        "The busiest backend over the mean.",
                        Query(pick(fleet.IMBALANCE, THIS_SERVICE), "{{port}}"), unit="none",
                        steps=uneven,
                    ),
                    timeseries(
                        "Churn: endpoints that come and go are rewritten on every node",
                        "Changes of this Service's endpoints per second, of the Services that"
                        " change most.",
                        Query(summed(rate(m.SERVICE_ENDPOINT_CHANGES, THIS_SERVICE), "namespace",
                                     "service", how="max"), "{{namespace}}/{{service}}"),
                        unit="cps", steps=high_is_bad(1, 10),
                    ),
                    timeseries(
                        "Endpoints by condition, all Services: not_ready that climbs is a rollout",
                        "Of the whole cluster: a series for each Service would be too many.",
                        Query(summed(pick(m.ENDPOINTS, HERE), "condition", how="max"),
                              "{{condition}}"),
                    ),
                ),
            ),
            Row(
                "How fast",
                (
                    timeseries(
                        "p99 by source: when all rise, it is the Service and not the measuring",
                        "Latency of calls to destinations of this name, by who measures it.",
                        Query(summed(pick(latency.P99["edge"], CALLED), "latency_source",
                                     how="max"), "{{latency_source}}"),
                        unit="s", steps=p99_steps,
                    ),
                    table(
                        "Callers that wait longest",
                        "p99 by caller and source of the measurement.",
                        ("source", "latency_source"),
                        Column("p99", most(summed(pick(latency.P99["edge"], CALLED), "source",
                                                  "latency_source", how="max")), "s", p99_steps),
                        Column("Requests", summed(pick(latency.REQUESTS["edge"], CALLED), "source",
                                                  "latency_source"), "reqps"),
                    ),
                ),
            ),
        ),
    )  # fmt: skip
