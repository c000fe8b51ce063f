"""Latency and rules: whether they go together, where that leads, and what else explains it."""

from __future__ import annotations

from alerts import attribution, fleet, growth, latency, links
from alerts.association import BY_CLUSTER, BY_NODE, RULES_QUOTED
from alerts.settings import DAY, HOUR, Settings
from dashboards.panels import (
    Board,
    Column,
    Query,
    Row,
    heatmap,
    high_is_bad,
    low_is_bad,
    scatter,
    stat,
    table,
    text,
    timeseries,
)
from dashboards.queries import HERE, THIS_SOURCE, VARIABLES, marks, most, pick, summed, to

READING = """
Rules cost a connection's **first packet** a few nanoseconds each: 5,000 Services are about 0.1 ms,
and established connections pay nothing. So where p99 is hundreds of milliseconds, walking the rules
is not why; look at what else happens when there are many: synchronisation and its lock, stale
endpoints, SYN retransmits (1 s, 3 s, …), connection tracking, softirqs. What is shown here is
association, not cause.
"""


def board(settings: Settings) -> Board:
    """The dashboard."""
    limit = settings.threshold
    p99_steps = high_is_bad(limit / 2, limit)
    strong = high_is_bad(settings.association_strong / 2, settings.association_strong)
    soon = low_is_bad(DAY, settings.breach_within)
    nodes = most(pick(BY_NODE.correlation, THIS_SOURCE), 20)
    return Board(
        links.LATENCY,
        "Latency and rules",
        "Whether latency goes with the number of rules, and what else goes with it.",
        VARIABLES,
        marks(),
        (
            Row(
                "Do they go together?",
                (
                    text("How to read this", READING),
                    timeseries(
                        "p99 and rules on one time axis: do they climb together?",
                        "Left: p99 of the cluster. Right: kube-proxy's rules on the average node.",
                        Query(pick(latency.P99["cluster"], THIS_SOURCE), "p99"),
                        Query(pick(growth.CLUSTER_RULES, HERE), "rules", right="short"),
                        unit="s", steps=p99_steps,
                    ),
                    scatter(
                        "p99 by rules, a point a node: a slope says that they go together",
                        "Only of sources that know the caller's node, as the prober does.",
                        ("node",),
                        Column("Rules", pick(growth.NODE_RULES, HERE)),
                        Column("p99", pick(latency.P99["node"], THIS_SOURCE), "s", p99_steps),
                    ),
                    stat(
                        "Correlation: near 1, rules and p99 move together",
                        "Pearson's r of the cluster's p99 and rules over"
                        f" {settings.association_window / HOUR:g} hours.",
                        pick(BY_CLUSTER.correlation, THIS_SOURCE), "r",
                        width=6, unit="none", steps=strong,
                    ),
                    stat(
                        "Given the load: what is left is not the load's doing",
                        "The same as a partial correlation, given the request rate.",
                        pick(BY_CLUSTER.partial, THIS_SOURCE), "partial r",
                        width=6, unit="none", steps=strong,
                    ),
                    stat(
                        f"Slope: what {RULES_QUOTED:,} rules more would add to p99",
                        "Least squares over the same window.",
                        pick(BY_CLUSTER.slope, THIS_SOURCE), "p99",
                        width=6, unit="ms", steps=high_is_bad(limit * 100, limit * 1000),
                    ),
                    stat(
                        "Time to breach: when p99 reaches the objective at this growth",
                        "By p99's own trend. Absent where it does not rise.",
                        pick(BY_CLUSTER.breach_by_latency, THIS_SOURCE), "until then",
                        width=6, unit="s", steps=soon,
                    ),
                    timeseries(
                        "Correlation over time: a step says when it began",
                        "Pearson's r, and what is left of it given the load.",
                        Query(pick(BY_CLUSTER.correlation, THIS_SOURCE), "r"),
                        Query(pick(BY_CLUSTER.partial, THIS_SOURCE), "given the load"),
                        unit="none", steps=strong,
                    ),
                    table(
                        "Start with these nodes: there the rules go with p99 most",
                        "Slope: ms of p99 that 10,000 rules more would add. Breach: when the growth"
                        " of the rules, at this slope, breaks the objective.",
                        ("node",),
                        Column("Correlation", nodes, "none", strong),
                        Column("Given the load", pick(BY_NODE.partial, THIS_SOURCE), "none",
                               strong),
                        Column("Slope", pick(BY_NODE.slope, THIS_SOURCE), "ms"),
                        Column("Breach", pick(BY_NODE.breach_by_rules, THIS_SOURCE), "s", soon),
                        link=to("Node", links.NODE, "node"),
                    ),
                ),
            ),
            Row(
                "Is it the walk through the rules?",
                (
                    timeseries(
                        "First packet, modelled and measured: apart, something else costs it",
                        "What a connection's first packet pays for the rules: by their depth and"
                        " what a rule costs, where a node can tell, and by the prober. Average"
                        " of the nodes.",
                        Query(pick(fleet.FIRST_PACKET, HERE), "{{kind}}"),
                        unit="s", steps=high_is_bad(limit / 50, limit / 10),
                    ),
                    table(
                        "Rules matter on a node where their cost is a large share of its p99",
                        "The nodes with the highest share.",
                        ("node",),
                        Column("Share of p99", most(pick(attribution.MODELLED_SHARE, THIS_SOURCE)),
                               "percentunit",
                               high_is_bad(settings.substantial_share / 2,
                                           settings.substantial_share)),
                        Column("Modelled", pick(attribution.MODELLED_COST, HERE), "s"),
                        Column("Measured", pick(fleet.MEASURED_COST, HERE), "s"),
                        link=to("Node", links.NODE, "node"),
                    ),
                ),
            ),
            Row(
                "What else explains it",
                (
                    timeseries(
                        "Attribution: the thickest band is the first suspect",
                        "Seconds of a node's p99 by cause, averaged over the nodes. A cause that"
                        " did not move in the window explains no change.",
                        Query(pick(fleet.CAUSES, HERE), "{{cause}}"),
                        Query(pick(fleet.UNEXPLAINED, HERE), "unexplained"),
                        unit="s", stacked=True,
                    ),
                    table(
                        "Suspects by node",
                        "The largest shares of a node's p99.",
                        ("node", "cause"),
                        Column("Share of p99", most(pick(attribution.SHARE, HERE), 20),
                               "percentunit", high_is_bad(0.25, 0.5)),
                        Column("Seconds", pick(attribution.EXPLAINED, HERE), "s"),
                        link=to("Node", links.NODE, "node"),
                    ),
                ),
            ),
            Row(
                "Who waits",
                (
                    heatmap(
                        "Where the requests are: a second band far up is retransmits or stalls",
                        "Requests per second by how long they took.",
                        pick(latency.BUCKETS["cluster"], THIS_SOURCE), unit="s",
                    ),
                    table(
                        "These callers wait longest",
                        "p99 by caller and destination.",
                        ("source", "destination"),
                        Column("p99", most(summed(pick(latency.P99["edge"], THIS_SOURCE), "source",
                                                  "destination", how="max"), 20), "s", p99_steps),
                        Column("Requests", summed(pick(latency.REQUESTS["edge"], THIS_SOURCE),
                                                  "source", "destination"), "reqps"),
                    ),
                    timeseries(
                        "Too slow: above the budget's line it runs out before its time",
                        f"Share of requests that took more than {limit * 1000:g} ms;"
                        f" {settings.budget:.3g} may.",
                        Query(pick(fleet.SLOW, THIS_SOURCE), "too slow"),
                        unit="percentunit",
                        steps=high_is_bad(settings.budget, 14.4 * settings.budget),
                    ),
                    timeseries(
                        "Load: latency that follows it is not the rules'",
                        "Requests per second of the chosen source.",
                        Query(pick(latency.REQUESTS["cluster"], THIS_SOURCE), "requests"),
                        unit="reqps",
                    ),
                ),
            ),
        ),
    )  # fmt: skip
