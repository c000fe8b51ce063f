"""IPVS and conntrack: tables that fill, connections that are lost, settings that delay them."""

from __future__ import annotations

from alerts import fleet, links
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
    stat,
    table,
    timeseries,
)
from dashboards.queries import (
    HERE,
    THIS_NODE,
    VARIABLES,
    marks,
    most,
    pick,
    rate,
    summed,
    to,
)
from vipscope import metrics as m


def board(settings: Settings) -> Board:
    """The dashboard."""
    fill = high_is_bad(settings.conntrack_fill, settings.conntrack_full)
    lost = high_is_bad(settings.conntrack_dropped, settings.conntrack_insert_failed)
    many = high_is_bad(settings.estimated_servers / 2, settings.estimated_servers)
    used = f"{pick(m.CONNTRACK_ENTRIES, THIS_NODE)} / {pick(m.CONNTRACK_BUCKETS, THIS_NODE)}"
    servers = summed(pick(m.IPVS_VIRTUAL_SERVERS, HERE), "node")
    return Board(
        links.IPVS_CONNTRACK,
        "IPVS and conntrack",
        "Tables that fill, connections that are lost, settings that delay them.",
        VARIABLES,
        marks(),
        (
            Row(
                "Connection tracking, all nodes",
                (
                    stat(
                        "The fullest table: at 100 % new connections are dropped",
                        "Share of a node's connection tracking table that is in use.",
                        pick(fleet.CONNTRACK_FULLEST, HERE), "in use",
                        unit="percentunit", steps=fill, width=6, height=8,
                    ),
                    bars(
                        "Raise the limit on these nodes first",
                        "Share of the table in use.",
                        most(pick(fleet.CONNTRACK_FILL, HERE)), "{{node}}",
                        unit="percentunit", steps=fill, width=6,
                        link=to("Choose this node", links.IPVS_CONNTRACK, "node"),
                    ),
                    timeseries(
                        "Connections that tracking loses: each waits a second or fails",
                        "drop: the table was full, or two clashed. early_drop: an older connection"
                        " made room. insert_failed: mostly, two had the same addresses and ports.",
                        Query(pick(fleet.CONNTRACK_LOST, HERE), "{{kind}}"), unit="cps", steps=lost,
                    ),
                ),
            ),
            Row(
                "Connection tracking on $node",
                (
                    timeseries(
                        "Entries and the limit: where the lines meet, connections are dropped",
                        "Tracked connections and how many may be.",
                        Query(pick(m.CONNTRACK_ENTRIES, THIS_NODE), "entries"),
                        Query(pick(m.CONNTRACK_LIMIT, THIS_NODE), "limit"), width=8,
                    ),
                    timeseries(
                        "Entries in a bucket: above 4, looking them up costs time",
                        "Entries over buckets of the hash table.",
                        Query(used, "entries in a bucket"), unit="none", steps=high_is_bad(4, 8),
                        width=8,
                    ),
                    timeseries(
                        "What tracking meets: clashes and restarts are a busy table",
                        "Per second.",
                        *(Query(rate(m.CONNTRACK[kind], THIS_NODE), kind)
                          for kind in ("insert_failed", "drop", "early_drop", "invalid",
                                       "clash_resolve", "search_restart", "chain_too_long")),
                        unit="cps", steps=lost, width=8,
                    ),
                ),
            ),
            Row(
                "IPVS, all nodes",
                (
                    stat(
                        "Virtual servers without a backend: their clients are refused",
                        "On the node with most. Right for Services without endpoints.",
                        pick(fleet.EMPTY_VIRTUAL_SERVERS, HERE), "empty",
                        steps=FEW_ARE_BAD, width=6,
                    ),
                    stat(
                        "Addresses that no device has: packets to them are lost",
                        "Addresses of virtual servers that are not bound, all nodes.",
                        pick(fleet.UNBOUND_ADDRESSES, HERE), "unbound",
                        steps=NONE_IS_GOOD, width=6,
                    ),
                    stat(
                        f"Virtual servers: from {settings.estimated_servers:,} on estimation stalls"
                        " softirqs",
                        "On the average node in mode ipvs.",
                        summed(pick(fleet.VIRTUAL_SERVERS, HERE)), "virtual servers",
                        steps=many, width=6,
                    ),
                    stat(
                        "Connections per second by IPVS: 0 says that none is in use",
                        "All nodes.",
                        pick(fleet.IPVS_CONNECTIONS, HERE), "new", unit="cps", width=6,
                    ),
                    table(
                        "Nodes with most virtual servers: open one below",
                        "empty: without a real server.",
                        ("node",),
                        Column("virtual servers", most(servers), steps=many),
                        Column("empty",
                               summed(pick(m.IPVS_EMPTY_VIRTUAL_SERVERS, HERE), "node"),
                               steps=FEW_ARE_BAD),
                        link=to("Choose this node", links.IPVS_CONNTRACK, "node"),
                    ),
                    timeseries(
                        "Virtual servers by scheduler: a second one is a change under way",
                        "On the average node in mode ipvs.",
                        Query(pick(fleet.VIRTUAL_SERVERS, HERE), "{{scheduler}}"), steps=many,
                    ),
                ),
            ),
            Row(
                "IPVS on $node",
                (
                    timeseries(
                        "Real servers: drained that stay are connections that never end",
                        "drained: weight 0, no new connections.",
                        Query(pick(m.IPVS_REAL_SERVERS, THIS_NODE),
                              "{{family}}, {{protocol}}, {{state}}"), width=8,
                    ),
                    timeseries(
                        "Connections: inactive that pile up are clients that do not close",
                        "Of all real servers.",
                        Query(pick(m.IPVS_CONNECTIONS, THIS_NODE), "{{state}}"), width=8,
                    ),
                    timeseries(
                        "Traffic: in without out is a black hole",
                        "Bytes per second through IPVS. Answers that bypass it are not in it.",
                        Query(rate(m.IPVS_BYTES, THIS_NODE), "{{direction}}"), unit="Bps", width=8,
                    ),
                    table(
                        "Settings: conn_reuse_mode 1 on an old kernel costs a second a connection",
                        "expire_nodest_conn 0 keeps connections to backends that are gone;"
                        " run_estimation 1 with very many virtual servers stalls softirqs.",
                        ("name",), Column("value", pick(m.IPVS_SYSCTL, THIS_NODE), "none"),
                    ),
                    timeseries(
                        "Virtual servers here, by the table and by the kernel's own count",
                        "Apart, the table is old.",
                        Query(summed(pick(m.IPVS_VIRTUAL_SERVERS, THIS_NODE), "family"),
                              "table, {{family}}"),
                        Query(pick(m.IPVS_SERVICES, THIS_NODE), "kernel's count, ipv4"),
                        steps=many,
                    ),
                ),
            ),
        ),
    )  # fmt: skip
