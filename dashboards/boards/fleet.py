"""Fleet: where the fleet stands, in one look. Every tile leads to what explains it."""

from __future__ import annotations

from alerts import attribution, fleet, growth, latency, links
from alerts.settings import Settings
from dashboards.panels import (
    FEW_ARE_BAD,
    NONE_IS_GOOD,
    Board,
    Column,
    Query,
    Row,
    bars,
    high_is_bad,
    low_is_bad,
    stat,
    table,
    timeseries,
)
from dashboards.queries import (
    HERE,
    THIS_SOURCE,
    VARIABLES,
    firing,
    marks,
    most,
    pick,
    summed,
    to,
)
from vipscope import metrics as m


def board(settings: Settings) -> Board:
    """The dashboard."""
    limit = settings.threshold
    p99_steps = high_is_bad(limit / 2, limit)
    drift = f"{summed(pick(fleet.DRIFTING, HERE))} / {summed(pick(fleet.EXPORTERS_UP, HERE))}"
    return Board(
        links.FLEET,
        "Fleet",
        "Where the fleet stands. Click a tile that is not green.",
        VARIABLES,
        marks(),
        (
            Row(
                "Is anybody hurt?",
                (
                    stat(
                        f"Clients wait too long when p99 is above {limit * 1000:g} ms",
                        "99 % of requests are answered within this time, as the chosen source"
                        " measures them over the last 5 minutes.",
                        pick(latency.P99["cluster"], THIS_SOURCE), "p99",
                        unit="s", steps=p99_steps, link=to("Latency and rules", links.LATENCY),
                    ),
                    stat(
                        "The worst caller's error budget: nothing is left at 0",
                        "Share of 30 days' budget of slow requests that is left to the caller and"
                        " destination that have least.",
                        pick(fleet.BUDGET, THIS_SOURCE), "left",
                        unit="percentunit", steps=low_is_bad(0, 0.25),
                        link=to("Latency and rules", links.LATENCY),
                    ),
                    stat(
                        "Services route to nobody: clients are refused",
                        "Services of which a port has no endpoint to send to, whatever the reason.",
                        summed(pick(fleet.UNROUTABLE, HERE)), "Services",
                        steps=NONE_IS_GOOD, link=to("Services", links.SERVICE),
                    ),
                    stat(
                        "Nodes drift: their kernels hold something else than the API wants",
                        "Share of the nodes whose rules differ from Services and EndpointSlices for"
                        " longer than the grace period. A table below names them.",
                        drift, "of the nodes",
                        unit="percentunit", steps=high_is_bad(0.001, 0.05),
                    ),
                    stat(
                        "Nodes are cut off: no Service is reached from them",
                        "Nodes on which what leads packets to the Services' rules is missing. A"
                        " table below names them.",
                        summed(pick(fleet.FAULTS, HERE), how="max"), "nodes",
                        steps=NONE_IS_GOOD,
                    ),
                    stat(
                        "Nodes are not seen: what is below is without them",
                        "Share of the exporters that answer.",
                        f"{summed(pick(fleet.EXPORTERS_UP, HERE))}"
                        f" / {summed(pick(fleet.EXPORTERS, HERE))}", "answer",
                        unit="percentunit", steps=low_is_bad(0.95, 1),
                        link=to("vipscope itself", links.EXPORTER),
                    ),
                ),
            ),
            Row(
                "Why",
                (
                    bars(
                        "Alerts by cause: the longest bar first",
                        "Alerts that fire now, by what is wrong.",
                        most(firing("cause", "severity")), "{{cause}}, {{severity}}",
                        steps=FEW_ARE_BAD,
                    ),
                    bars(
                        "What goes with the latency: the top causes now",
                        "Seconds of a node's p99 that go with each cause, averaged over the nodes."
                        " Association, not proof.",
                        most(pick(fleet.CAUSES, HERE)), "{{cause}}",
                        unit="s", steps=p99_steps, link=to("Latency and rules", links.LATENCY),
                    ),
                    table(
                        "Start with these nodes: a cause has most of their latency",
                        "The nodes of which one cause explains the largest share of p99.",
                        ("node", "cause"),
                        Column("Share of p99", most(pick(attribution.SHARE, HERE)), "percentunit",
                               high_is_bad(0.25, 0.5)),
                        width=8, link=to("Node", links.NODE, "node"),
                    ),
                ),
            ),
            Row(
                "Latency and rules",
                (
                    timeseries(
                        "p99 against the objective: above the red line it is broken",
                        "Latency of the whole cluster by the chosen source.",
                        Query(pick(latency.P99["cluster"], THIS_SOURCE), "p99"),
                        Query(pick(latency.LATENCY["cluster", 50], THIS_SOURCE), "median"),
                        unit="s", steps=p99_steps,
                    ),
                    timeseries(
                        "Rules of a node: a line that climbs will cost latency",
                        "kube-proxy's rules on the average and on the fullest node.",
                        Query(pick(fleet.RULES_MAX, HERE), "fullest node"),
                        Query(pick(growth.CLUSTER_RULES, HERE), "average"),
                        steps=high_is_bad(settings.many_rules / 2, settings.many_rules),
                    ),
                    bars(
                        "The fullest nodes",
                        "kube-proxy's rules by node.",
                        most(pick(growth.NODE_RULES, HERE)), "{{node}}",
                        steps=high_is_bad(settings.many_rules / 2, settings.many_rules),
                        link=to("Node", links.NODE, "node"),
                    ),
                    timeseries(
                        "Nodes by kube-proxy's mode: more than one mode is a migration under way",
                        "Nodes whose kernel holds each mode's program.",
                        Query(pick(growth.PROXY_MODES, HERE), "{{mode}}"),
                        width=16, stacked=True,
                    ),
                ),
            ),
            Row(
                "Drift and Services",
                (
                    table(
                        "Open these nodes: they drift, the longest first",
                        "How long a node's kernel has differed from the API.",
                        ("node",),
                        Column("for", f"{most(pick(m.DRIFT_OLDEST, HERE))} > 0", "s",
                               high_is_bad(settings.drift_age, settings.drift_age_critical)),
                        link=to("Node", links.NODE, "node"),
                    ),
                    table(
                        "Open these nodes first: no Service is reached from them",
                        "empty: the kernel holds none of kube-proxy's ways in. prerouting: packets"
                        " of pods and from outside never reach them. output: nor those of the node."
                        " node_ports: nor those for node ports.",
                        ("node", "fault"),
                        Column("cut off", f"{most(pick(m.DRIFT_FAULT, HERE))} > 0",
                               steps=NONE_IS_GOOD),
                        link=to("Node", links.NODE, "node"),
                    ),
                    timeseries(
                        "Service ports that drift: anything above 0 is refused or misrouted",
                        "Service ports that kernels lack (missing) or hold in excess (orphaned),"
                        " summed over the nodes.",
                        *(Query(pick(each, HERE), f"{what}, {{{{kind}}}}")
                          for what, each in zip(("Service ports", "endpoints"),
                                                fleet.DRIFT.values(), strict=True)),
                        steps=FEW_ARE_BAD,
                    ),
                    timeseries(
                        "Services that route to nobody, by reason",
                        "As the cluster and the nodes tell.",
                        Query(pick(fleet.UNROUTABLE, HERE), "{{reason}}"),
                        steps=NONE_IS_GOOD,
                    ),
                    table(
                        "Open these Services: they route to nobody",
                        "Service ports without an endpoint to send to. seen by: nodes, or exporters"
                        " of the cluster, that say so.",
                        ("service", "namespace", "port", "reason"),
                        Column("seen by", most(pick(fleet.SERVICE_UNROUTABLE, HERE), 20),
                               steps=NONE_IS_GOOD),
                        link=to("Service", links.SERVICE, "namespace", "service"),
                    ),
                    table(
                        "Open these Services: nodes' kernels differ from the API",
                        "Service ports that drift, by the number of nodes.",
                        ("service", "namespace", "port", "kind"),
                        Column("nodes", most(pick(fleet.SERVICE_DRIFT, HERE), 20),
                               steps=NONE_IS_GOOD),
                        link=to("Service", links.SERVICE, "namespace", "service"),
                    ),
                ),
            ),
        ),
    )  # fmt: skip
