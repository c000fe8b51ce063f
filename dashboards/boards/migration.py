"""Migration from iptables to nftables or ipvs: how far, to what effect, what is left."""

from __future__ import annotations

from alerts import fleet, growth, latency, links
from alerts.settings import Settings
from dashboards.panels import (
    BLUE,
    GREEN,
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
    timeline,
    timeseries,
)
from dashboards.queries import (
    HERE,
    THIS_NODE,
    THIS_SOURCE,
    VARIABLES,
    marks,
    most,
    pick,
    summed,
    to,
)
from vipscope import metrics as m

SOURCE = {**THIS_NODE, "latency_source": "$latency_source"}
HELD = {"0": ("no", BLUE), "1": ("yes", GREEN)}


def board(settings: Settings) -> Board:
    """The dashboard."""
    limit = settings.threshold
    p99_steps = high_is_bad(limit / 2, limit)
    many = high_is_bad(settings.many_rules / 2, settings.many_rules)
    walked = high_is_bad(limit / 50, limit / 10)
    seen = summed(pick(fleet.EXPORTERS_UP, HERE))
    nftables = summed(pick(growth.PROXY_MODES, HERE, mode="nftables"))
    ipvs = summed(pick(growth.PROXY_MODES, HERE, mode="ipvs"))
    return Board(
        links.MIGRATION,
        "Migration",
        "From mode iptables to nftables or ipvs: how far, to what effect, and what is left behind.",
        VARIABLES,
        marks(),
        (
            Row(
                "How far",
                (
                    stat(
                        "In mode nftables: done at 100 %",
                        "Share of the nodes whose kernel holds kube-proxy's nftables program.",
                        f"{nftables} / {seen}", "nftables",
                        unit="percentunit", steps=low_is_bad(0.01, 1), width=6,
                    ),
                    stat(
                        "In mode ipvs: deprecated, so that this should fall",
                        "Share of the nodes whose kernel holds kube-proxy's virtual servers.",
                        f"{ipvs} / {seen}", "ipvs",
                        unit="percentunit", steps=high_is_bad(0.001, 0.5), width=6,
                    ),
                    stat(
                        "Leftovers: nodes with two modes send to endpoints that nobody updates",
                        "Nodes that hold the programs of more than one mode.",
                        pick(fleet.LEFTOVERS, HERE), "nodes", steps=NONE_IS_GOOD, width=6,
                    ),
                    stat(
                        "Kernels: from 5.13 on, mode nftables is there",
                        "Different kernels among the nodes; the table below names them.",
                        f"count({pick(fleet.KERNELS, HERE)})", "kernels", width=6,
                    ),
                    timeseries(
                        "Nodes per mode over time: the lines should cross once",
                        "A node with leftovers counts in each of its modes.",
                        Query(pick(growth.PROXY_MODES, HERE), "{{mode}}"), stacked=True, width=24,
                    ),
                ),
            ),
            Row(
                "To what effect",
                (
                    timeseries(
                        "p99 by mode: the new mode must not be above the old one",
                        "Latency of the callers on nodes of each mode, without those with"
                        " leftovers.",
                        Query(pick(fleet.MODE_P99, THIS_SOURCE), "{{mode}}"),
                        unit="s", steps=p99_steps,
                    ),
                    timeseries(
                        "What a first packet pays by mode: flat in nftables, growing in iptables",
                        "Modelled from the depth of the rules, where a node can tell what one"
                        " costs, and measured by the prober.",
                        Query(pick(fleet.MODE_COST, HERE), "{{mode}}, {{kind}}"),
                        unit="s", steps=walked,
                    ),
                    timeseries(
                        "Rules by mode: what kube-proxy needs for the same Services",
                        "Rules of kube-proxy on the average node of each mode.",
                        Query(pick(fleet.MODE_RULES, HERE), "{{mode}}"), steps=many,
                    ),
                    table(
                        "Side by side: the modes as they are now",
                        "Averages of the nodes of each mode. First packet: as modelled, so empty"
                        " where the rules are too few to tell.",
                        ("mode",),
                        Column("nodes", pick(growth.PROXY_MODES, HERE)),
                        Column("rules", pick(fleet.MODE_RULES, HERE), steps=many),
                        Column("p99", pick(fleet.MODE_P99, THIS_SOURCE), "s", p99_steps),
                        Column("first packet",
                               summed(pick(fleet.MODE_COST, HERE, kind="modelled"), "mode"),
                               "s", walked),
                    ),
                ),
            ),
            Row(
                "Before and after on $node",
                (
                    timeline(
                        "When this node switched: two at once are leftovers",
                        "The modes whose program its kernel holds.",
                        Query(pick(m.PROXY_MODE, THIS_NODE, mode="~iptables|ipvs|nftables"),
                              "{{mode}}"), HELD, width=8,
                    ),
                    timeseries(
                        "p99 and rules around the switch: both should fall",
                        "Left: p99. Right: kube-proxy's rules.",
                        Query(pick(latency.P99["node"], SOURCE), "p99"),
                        Query(pick(growth.NODE_RULES, THIS_NODE), "rules", right="short"),
                        unit="s", steps=p99_steps, width=8,
                    ),
                    timeseries(
                        "First packet around the switch: in nftables it should be near 0",
                        "Modelled and measured.",
                        Query(pick(m.FIRST_PACKET_COST, THIS_NODE), "{{kind}}"),
                        unit="s", steps=walked, width=8,
                    ),
                ),
            ),
            Row(
                "What is left, and what stands in the way",
                (
                    table(
                        "Reboot these nodes or clean them: they hold two modes",
                        "kube-proxy --cleanup removes what an older mode left.",
                        ("node",),
                        Column("modes", f"{most(pick(fleet.NODE_MODES, HERE), 20)} > 1",
                               steps=high_is_bad(2, 3)),
                        width=8, link=to("This node", links.MIGRATION, "node"),
                    ),
                    table(
                        "Kernels: those below 5.13 keep a node from nftables",
                        "Nodes by kernel.",
                        ("kernel",), Column("nodes", pick(fleet.KERNELS, HERE)), width=8,
                    ),
                    bars(
                        "Who else has rules: each of them must work beside nftables",
                        "Rules of the average node by owner.",
                        most(pick(fleet.OWNER_RULES, HERE)), "{{owner}}",
                    ),
                    bars(
                        "Backends: rules in legacy are of tools that do not see nft's",
                        "Rules of all nodes by backend.",
                        pick(fleet.BACKEND_RULES, HERE), "{{backend}}",
                    ),
                    bars(
                        "Services that ask for more: test these first",
                        "Services by type. NodePorts answer on fewer addresses in mode nftables.",
                        summed(pick(m.SERVICES, HERE), "type", how="max"), "{{type}}",
                    ),
                    bars(
                        "Traffic policies and affinity: what a switch must keep",
                        "Services with session affinity, and by traffic policy.",
                        summed(pick(m.SERVICES_TRAFFIC_POLICY, HERE), "direction", "policy",
                               how="max"), "{{direction}}, {{policy}}",
                    ),
                ),
            ),
        ),
    )  # fmt: skip
