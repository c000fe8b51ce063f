"""Node: what one node's kernel holds, who writes it, how well, and under what pressure."""

from __future__ import annotations

from alerts import attribution, fleet, growth, latency, links
from alerts.settings import Settings
from dashboards.panels import (
    ALL_IS_GOOD,
    FEW_ARE_BAD,
    GREEN,
    NONE_IS_GOOD,
    ORANGE,
    RED,
    Annotation,
    Board,
    Column,
    Query,
    Row,
    heatmap,
    high_is_bad,
    stat,
    table,
    timeline,
    timeseries,
)
from dashboards.queries import (
    THIS_NODE,
    VARIABLES,
    bucket,
    firing,
    marks,
    pick,
    quantile,
    rate,
    summed,
    to,
)
from vipscope import metrics as m

SOURCE = {**THIS_NODE, "latency_source": "$latency_source"}
UP = {"0": ("down", RED), "1": ("up", GREEN)}
LOCK = {"0": ("free", GREEN), "1": ("held", ORANGE)}


def board(settings: Settings) -> Board:
    """The dashboard."""
    limit = settings.threshold
    p99_steps = high_is_bad(limit / 2, limit)
    many = high_is_bad(settings.many_rules / 2, settings.many_rules)
    pending = high_is_bad(settings.sync_pending, settings.sync_hung)
    programmed = summed(rate(bucket(m.PROGRAMMING_LATENCY), THIS_NODE), "le")
    heard = summed(rate(bucket(m.PROGRAMMING_LATENCY_FROM_EVENT), THIS_NODE), "le")
    rewritten = Annotation(
        "Rewritten here", f"{pick(fleet.REWRITTEN_SHARE, THIS_NODE)} >= {fleet.REWRITTEN:g}",
        "Most rules of {{node}} were added anew", ORANGE,
    )  # fmt: skip
    return Board(
        links.NODE,
        "Node",
        "What one node's kernel holds for Services, and why it is slow or wrong.",
        VARIABLES,
        marks(rewritten),
        (
            Row(
                "What is wrong here",
                (
                    stat(
                        "p99 of this node: above the objective its clients wait",
                        "By the chosen source, where that knows nodes.",
                        pick(latency.P99["node"], SOURCE), "p99", unit="s", steps=p99_steps,
                        link=to("Latency and rules", links.LATENCY),
                    ),
                    stat(
                        "Drift: how long the kernel has differed from the API",
                        "Age of the oldest disagreement; 0 when they agree.",
                        pick(m.DRIFT_OLDEST, THIS_NODE), "oldest", unit="s",
                        steps=high_is_bad(settings.drift_age, settings.drift_age_critical),
                    ),
                    stat(
                        "Cut off: 1 when no Service is reached from here",
                        "What leads packets to the Services' rules is missing.",
                        summed(pick(m.DRIFT_FAULT, THIS_NODE), how="max"), "cut off",
                        unit="bool_yes_no", steps=NONE_IS_GOOD,
                    ),
                    stat(
                        "Rules: many make each synchronisation and each first packet slow",
                        "kube-proxy's rules, all tables.",
                        pick(growth.NODE_RULES, THIS_NODE), "rules", steps=many,
                    ),
                    stat(
                        "kube-proxy is behind when a change waits",
                        "How long a change has been queued without being written.",
                        pick(m.KUBE_PROXY_SYNC_PENDING, THIS_NODE), "pending", unit="s",
                        steps=pending,
                    ),
                    stat(
                        "Connection tracking: full, it drops new connections",
                        "Share of the table in use.",
                        pick(fleet.CONNTRACK_FILL, THIS_NODE), "in use", unit="percentunit",
                        steps=high_is_bad(settings.conntrack_fill, settings.conntrack_full),
                        link=to("IPVS and conntrack", links.IPVS_CONNTRACK),
                    ),
                    table(
                        "Why p99 is what it is: the largest share is the first suspect",
                        "Seconds of this node's p99 that go with each cause.",
                        ("cause",),
                        Column("Seconds", pick(attribution.EXPLAINED, THIS_NODE), "s", p99_steps),
                        Column("Share of p99", pick(attribution.SHARE, THIS_NODE), "percentunit",
                               high_is_bad(0.25, 0.5)),
                        width=8,
                    ),
                    table(
                        "Services that drift here: open one",
                        "The oldest disagreements of kernel and API.",
                        ("service", "namespace", "port", "kind"),
                        Column("wrong", pick(m.DRIFT_SERVICE, THIS_NODE), steps=NONE_IS_GOOD),
                        width=8, link=to("Service", links.SERVICE, "namespace", "service"),
                    ),
                    timeseries(
                        "Alerts of this node over time: what began first?",
                        "Alerts that fire, of this node.",
                        Query(firing("alertname", "severity", node="$node"),
                              "{{alertname}}, {{severity}}"),
                        width=8, stacked=True, steps=FEW_ARE_BAD,
                    ),
                ),
            ),
            Row(
                "What the kernel holds",
                (
                    timeseries(
                        "Rules by owner: who fills the tables?",
                        "All rules of the kernel by who made them.",
                        Query(pick(growth.OWNER_RULES, THIS_NODE), "{{owner}}"), stacked=True,
                        steps=many,
                    ),
                    timeseries(
                        "kube-proxy's rules by class: endpoints should be most of them",
                        "kube-proxy's rules by the class of the chain that holds them.",
                        Query(summed(pick(m.RULES, THIS_NODE, owner="kube-proxy"), "class"),
                              "{{class}}"), stacked=True, steps=many,
                    ),
                    timeseries(
                        "Depth: rules that a first packet walks before its Service's own",
                        "By the share of Service ports that are no deeper. In mode nftables it is"
                        " flat: one look-up.",
                        Query(pick(m.SERVICE_RULE_DEPTH, THIS_NODE), "{{family}}, {{quantile}}"),
                        steps=high_is_bad(5_000, 20_000),
                    ),
                    timeseries(
                        "First packet: what the rules cost it, modelled and measured",
                        "Apart, something else than the rules costs it. Modelled is missing where"
                        " the node cannot tell what a rule costs: too few rules, many by both"
                        " address families, or no IPv6.",
                        Query(pick(m.FIRST_PACKET_COST, THIS_NODE), "{{kind}}"), unit="s",
                        steps=high_is_bad(limit / 50, limit / 10),
                    ),
                    timeseries(
                        "p99 and rules here: do they climb together?",
                        "Left: this node's p99. Right: its rules.",
                        Query(pick(latency.P99["node"], SOURCE), "p99"),
                        Query(pick(growth.NODE_RULES, THIS_NODE), "rules", right="short"),
                        unit="s", steps=p99_steps,
                    ),
                    timeseries(
                        "Held and intended: apart, a write failed or somebody else wrote",
                        "kube-proxy's rules in the kernel beside those it means to have written.",
                        Query(summed(pick(m.RULES, THIS_NODE, owner="kube-proxy"), "family",
                                     "table"), "held, {{family}} {{table}}"),
                        Query(summed(pick(m.KUBE_PROXY_INTENDED_RULES, THIS_NODE), "family",
                                     "table"), "intended, {{family}} {{table}}"),
                    ),
                ),
            ),
            Row(
                "Who writes it, and how well",
                (
                    timeseries(
                        "Writers: two busy ones undo each other",
                        "Transactions per second by the name of the process that commits them.",
                        Query(rate(m.TRANSACTIONS, THIS_NODE), "{{process}}"), unit="ops",
                        steps=high_is_bad(settings.writer_rate, 1),
                    ),
                    timeseries(
                        "Rewrites: a peak as high as the ruleset is a full rewrite",
                        "Objects added and deleted per second.",
                        Query(rate(m.CHANGES, THIS_NODE), "{{object}}, {{op}}"), unit="ops",
                    ),
                    timeseries(
                        "Synchronisation: a saw-tooth is kube-proxy falling behind",
                        "How long kube-proxy has had a change queued; failed writes per second.",
                        Query(pick(m.KUBE_PROXY_SYNC_PENDING, THIS_NODE), "pending"),
                        Query(rate(m.KUBE_PROXY_RESTORE_FAILURES, THIS_NODE), "failed writes",
                              right="ops"),
                        unit="s", steps=pending,
                    ),
                    timeseries(
                        "Programming latency: how long a change takes until the kernel has it",
                        "p99 from an endpoint's change, and kube-proxy's own part of it.",
                        Query(quantile(0.99, programmed), "since the change"),
                        Query(quantile(0.99, heard), "since this node heard of it"),
                        unit="s", steps=high_is_bad(10, 60),
                    ),
                    heatmap(
                        "Programming latency: a band that moves up is a slow writer",
                        "Changes per second by how long they took.",
                        programmed, unit="s",
                    ),
                    timeline(
                        "kube-proxy's health: red, the kernel keeps what it has",
                        "What its /healthz says.",
                        Query(pick(m.KUBE_PROXY_UP, THIS_NODE), "kube-proxy"), UP,
                        steps=ALL_IS_GOOD, width=6,
                    ),
                    timeline(
                        "The xtables lock: never free, everybody waits",
                        "Whether a process holds /run/xtables.lock.",
                        Query(pick(m.LOCK_HELD, THIS_NODE), "lock"), LOCK,
                        steps=FEW_ARE_BAD, width=6,
                    ),
                ),
            ),
            Row(
                "Pressure",
                (
                    timeseries(
                        "SYN retransmits: each is a connection that waited a second or more",
                        "SYN and SYN-ACK segments sent again, per second.",
                        Query(rate(m.TCP_SYN_RETRANSMITS, THIS_NODE), "retransmits"), unit="cps",
                        width=8, steps=high_is_bad(1, 10),
                    ),
                    timeseries(
                        "Softirqs: near one core for each CPU, packets wait",
                        "Cores spent in softirqs, and what was dropped or cut short.",
                        Query(rate(m.SOFTIRQ_SECONDS, THIS_NODE), "cores"),
                        Query(rate(m.SOFTNET_DROPPED, THIS_NODE), "dropped", right="cps"),
                        Query(rate(m.SOFTNET_SQUEEZED, THIS_NODE), "squeezed", right="cps"),
                        width=8,
                    ),
                    timeseries(
                        "Connection tracking loses connections: anything above 0 hurts",
                        "Dropped, evicted and refused entries per second.",
                        *(Query(rate(m.CONNTRACK[kind], THIS_NODE), kind) for kind in fleet.LOST),
                        unit="cps", width=8, steps=high_is_bad(0.1, 1),
                    ),
                ),
            ),
            Row(
                "What vipscope costs here",
                (
                    timeseries(
                        "CPU by collector: together below the budget",
                        "Cores that each collector's reads take.",
                        Query(rate(m.COLLECTOR_CPU, THIS_NODE), "{{collector}}"),
                        unit="percentunit", stacked=True, steps=high_is_bad(0.02, 0.05),
                    ),
                    timeseries(
                        "Age of what is shown: old, the node is too busy to be counted",
                        "Time since the counted state was known to be the kernel's.",
                        Query(pick(m.SNAPSHOT_AGE, THIS_NODE), "{{backend}}"), unit="s",
                        steps=high_is_bad(settings.snapshot_age / 2, settings.snapshot_age),
                    ),
                ),
            ),
        ),
    )  # fmt: skip
