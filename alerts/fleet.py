"""What dashboards show of many nodes at once, recorded so that no panel reads each node's series.

Levels are `cluster`, with what splits it, and `service`, over the nodes that export something of a
Service. Of a node's own series those are here that are ranked over the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping

from alerts import attribution, growth, latency, slo
from alerts.rule import CLUSTER, NODE, Group, Record, buckets, by, finite, on, series
from alerts.settings import LEISURELY, MINUTE, Settings
from vipscope import metrics as m
from vipscope.metrics import Metric

RATE_WINDOW = 5 * MINUTE
REWRITTEN = 0.5
"""Share of a node's rules from which on what adds them has rewritten the ruleset."""

SERVICE = (*CLUSTER, "namespace", "service", "port")
_MODE = (*CLUSTER, "mode")

EXPORTERS = series("cluster:vipscope_up:count", "Nodes that should answer.", CLUSTER)
EXPORTERS_UP = series("cluster:vipscope_up:sum", "Nodes that answer.", CLUSTER)
KERNELS = series("cluster_kernel:vipscope_nodes:count", "Nodes by kernel.", (*CLUSTER, "kernel"))

# Modes.
NODE_MODES = series("node:vipscope_proxy_modes:count", "kube-proxy modes that a node holds.", NODE)
NODE_MODE = series(
    "node_mode:vipscope_proxy_mode:only", "1 for the mode of a node that has just one, else 0.",
    (*NODE, "mode"),
)  # fmt: skip
LEFTOVERS = series("cluster:vipscope_leftover_nodes:count", "Nodes with several modes.", CLUSTER)
MODE_RULES = series(
    "cluster_mode:vipscope_kube_proxy_rules:avg", "kube-proxy's rules by its mode.", _MODE
)
MODE_COST = series(
    "cluster_mode:vipscope_first_packet_cost_seconds:avg",
    "What a first packet pays for the rules by mode, modelled and measured.", (*_MODE, "kind"),
)  # fmt: skip
MODE_BUCKETS = series(
    "cluster_mode:vipscope_latency_seconds_bucket:rate5m",
    "Requests per second that took at most `le` seconds, by the mode of the caller's node.",
    (*_MODE, "latency_source", "le"),
)
MODE_P99 = series(
    "cluster_mode:vipscope_latency_seconds:p99", "p99 by the mode of the caller's node.",
    (*_MODE, "latency_source"),
)  # fmt: skip

# Rules and what they cost.
RULES_MAX = series(
    "cluster:vipscope_kube_proxy_rules:max", "kube-proxy's rules on the fullest node.", CLUSTER
)
OWNER_RULES = series(
    "cluster_owner:vipscope_rules:avg", "Rules of a node by owner, on average.", (*CLUSTER, "owner")
)
BACKEND_RULES = series(
    "cluster_backend:vipscope_rules:sum", "Rules of all nodes by backend.", (*CLUSTER, "backend")
)
REWRITTEN_SHARE = series(
    "node:vipscope_rules_added:share5m", "Rules that were added within 5 minutes over all.", NODE
)
REWRITES = series(
    "cluster:vipscope_ruleset_rewrites:count",
    f"Nodes of which {REWRITTEN:.0%} of the rules were added within 5 minutes.", CLUSTER,
)  # fmt: skip
FIRST_PACKET = series(
    "cluster_kind:vipscope_first_packet_cost_seconds:avg",
    "What a first packet pays for the rules, modelled and measured.", (*CLUSTER, "kind"),
)  # fmt: skip
MEASURED_COST = series(
    "node:vipscope_first_packet_cost_seconds:measured", "The same by node, measured.", NODE
)
PROGRAMMING = series(
    "cluster:vipscope_programming_latency_seconds_bucket:rate5m",
    "Changes per second that were in the kernel within `le` seconds.", (*CLUSTER, "le"),
)  # fmt: skip
SYNC_PENDING = series(
    "cluster:vipscope_kube_proxy_sync_pending_seconds:max",
    "How long the slowest kube-proxy has had a change queued.", CLUSTER,
)  # fmt: skip

# Latency.
SLOW = series(
    "cluster:vipscope_slow_requests:ratio", "Share of requests that were too slow.",
    latency.CLUSTER_SOURCE,
)  # fmt: skip
BUDGET = series(
    "cluster:vipscope_error_budget_remaining:min",
    "Share of the period's budget that is left to the caller and destination that have least.",
    latency.CLUSTER_SOURCE,
)
CAUSES = series(
    "cluster_cause:vipscope_latency_explained_seconds:avg",
    "Seconds of a node's p99 that go with a cause, on average.", (*CLUSTER, "cause"),
)  # fmt: skip
UNEXPLAINED = series(
    "cluster:vipscope_latency_unexplained_seconds:avg", "What no cause explains of it.", CLUSTER
)

# What is wrong.
DRIFTING = series("cluster:vipscope_drifting_nodes:count", "Nodes that drift.", CLUSTER)
DRIFT = {
    metric: series(
        f"cluster_kind:{metric}:sum", "The same over all nodes.", (*CLUSTER, *metric.labels)
    )
    for metric in (m.DRIFT_SERVICES, m.DRIFT_ENDPOINTS)
}
FAULTS = series(
    "cluster_fault:vipscope_drift_fault:sum", "Nodes that are cut off.", (*CLUSTER, "fault")
)
UNROUTABLE = series(
    "cluster_reason:vipscope_unroutable_services:max",
    "Services that route to nobody, by reason.", (*CLUSTER, "reason"),
)  # fmt: skip
SERVICE_UNROUTABLE = series(
    "service_reason:vipscope_service_unroutable:count",
    "How many say that a Service port routes to nobody: nodes, or the cluster's exporters.",
    (*SERVICE, "reason"),
)
SERVICE_DRIFT = series(
    "service_kind:vipscope_drift_service:count", "Nodes on which a Service port drifts.",
    (*SERVICE, "kind"),
)  # fmt: skip

# Services.
CONNECTIONS = series(
    "service:vipscope_new_connections:rate5m", "New connections per second, all nodes.", SERVICE
)
IMBALANCE = series(
    "service:vipscope_backend_imbalance_ratio:max",
    "The busiest backend over the mean, on the node where that is worst.", SERVICE,
)  # fmt: skip

# Connection tracking and IPVS.
CONNTRACK_FILL = series(
    "node:vipscope_conntrack_fill:ratio", "Share of the connection tracking table in use.", NODE
)
CONNTRACK_FULLEST = series(
    "cluster:vipscope_conntrack_fill:max", "The same on the fullest node.", CLUSTER
)
CONNTRACK_LOST = series(
    "cluster_kind:vipscope_conntrack_lost:rate5m",
    "Connections per second that tracking lost.", (*CLUSTER, "kind"),
)  # fmt: skip
LOST = ("drop", "early_drop", "insert_failed")
VIRTUAL_SERVERS = series(
    "cluster_scheduler:vipscope_ipvs_virtual_servers:avg",
    "IPVS virtual servers of a node that has any, on average.", (*CLUSTER, "scheduler"),
)  # fmt: skip
EMPTY_VIRTUAL_SERVERS = series(
    "cluster:vipscope_ipvs_empty_virtual_servers:max",
    "IPVS virtual servers without a real server, on the node with most.", CLUSTER,
)  # fmt: skip
UNBOUND_ADDRESSES = series(
    "cluster:vipscope_ipvs_unbound_addresses:sum", "IPVS addresses that no device has.", CLUSTER
)
IPVS_CONNECTIONS = series(
    "cluster:vipscope_ipvs_connections:rate5m", "Connections per second by IPVS.", CLUSTER
)

# The exporter.
STATES = series(
    "cluster_collector:vipscope_collector_state:sum", "Exporters by their collectors' states.",
    (*CLUSTER, "collector", "state"),
)  # fmt: skip
CPU = series("node:vipscope_collector_cpu:rate5m", "Cores that a node's reads take.", NODE)
COLLECTOR_CPU = series(
    "cluster_collector:vipscope_collector_cpu:rate5m",
    "Cores that a collector takes on a node, on average.", (*CLUSTER, "collector"),
)  # fmt: skip
RESYNCS = series(
    "cluster_reason:vipscope_ruleset_resyncs:rate5m", "Full reads per second, all nodes.",
    (*CLUSTER, "reason"),
)  # fmt: skip
SNAPSHOT_AGE = series(
    "cluster_backend:vipscope_ruleset_snapshot_age_seconds:max",
    "Age of the oldest counted state.", (*CLUSTER, "backend"),
)  # fmt: skip
SERIES = series("cluster:vipscope_series:sum", "Series of all exporters.", CLUSTER)


def groups(settings: Settings) -> list[Group]:
    """A group a subject."""
    window = settings.span(RATE_WINDOW)
    named = {
        "modes": _modes(),
        "rules": _rules(window),
        "latency": _latency(),
        "troubles": _troubles(),
        "services": _services(window),
        "tables": _tables(window),
        "exporters": _exporters(settings.job, window),
    }
    return [
        Group(
            f"vipscope-fleet-{name}",
            [Record(series, expr) for series, expr in recorded.items()]
            + (_lost(window) if name == "tables" else []),
            LEISURELY,
        )
        for name, recorded in named.items()
    ]


def _modes() -> Mapping[Metric, str]:
    held = f"sum {by(*NODE)} ({m.PROXY_MODE.select(mode='~iptables|ipvs|nftables')})"
    each = f"max {by(*NODE, 'mode')} ({m.PROXY_MODE})"
    # 0 and not absent, so that after a switch a node has at no time two.
    only = f"{each} * {on(*NODE)} group_left () ({NODE_MODES} <= bool 1)"
    its_mode = f"* {on(*NODE)} group_left (mode) ({NODE_MODE} == 1)"
    cost = f"max {by(*NODE, 'kind')} ({m.FIRST_PACKET_COST})"
    return {
        NODE_MODES: held,
        NODE_MODE: only,
        LEFTOVERS: f"sum {by(*CLUSTER)} ({NODE_MODES} > bool 1)",
        MODE_RULES: f"avg {by(*_MODE)} ({growth.NODE_RULES} {its_mode})",
        MODE_COST: f"avg {by(*_MODE, 'kind')} ({cost} {its_mode})",
        MODE_BUCKETS: f"sum {by(*_MODE, 'latency_source', 'le')}"
        f" ({latency.BUCKETS['node']} {its_mode})",
        MODE_P99: finite(f"histogram_quantile(0.99, {MODE_BUCKETS})"),
    }


def _rules(window: str) -> Mapping[Metric, str]:
    added = f"increase({m.CHANGES.select(object='rule', op='add')}[{window}])"
    programmed = f"rate({buckets(m.PROGRAMMING_LATENCY)}[{window}])"
    return {
        RULES_MAX: f"max {by(*CLUSTER)} ({growth.NODE_RULES})",
        OWNER_RULES: f"avg {by(*CLUSTER, 'owner')} ({growth.OWNER_RULES})",
        BACKEND_RULES: f"sum {by(*CLUSTER, 'backend')} ({m.RULES})",
        REWRITTEN_SHARE: f"sum {by(*NODE)} ({added}) / ({growth.NODE_RULES} > 0)",
        REWRITES: f"sum {by(*CLUSTER)} ({REWRITTEN_SHARE} >= bool {REWRITTEN:g})",
        FIRST_PACKET: f"avg {by(*CLUSTER, 'kind')} ({m.FIRST_PACKET_COST})",
        MEASURED_COST: f"max {by(*NODE)} ({m.FIRST_PACKET_COST.select(kind='measured')})",
        PROGRAMMING: f"sum {by(*CLUSTER, 'le')} ({programmed})",
        SYNC_PENDING: f"max {by(*CLUSTER)} ({m.KUBE_PROXY_SYNC_PENDING})",
    }


def _latency() -> Mapping[Metric, str]:
    fast, total = (f"sum {by(*latency.CLUSTER_SOURCE)} ({each})" for each in (slo.FAST, slo.TOTAL))
    return {
        SLOW: f"clamp_min(1 - {fast} / ({total} > 0), 0)",
        BUDGET: f"min {by(*latency.CLUSTER_SOURCE)} ({slo.REMAINING})",
        CAUSES: f"avg {by(*CLUSTER, 'cause')} ({attribution.EXPLAINED})",
        UNEXPLAINED: f"avg {by(*CLUSTER)} ({attribution.UNEXPLAINED})",
    }


def _troubles() -> Mapping[Metric, str]:
    return {
        DRIFTING: f"sum {by(*CLUSTER)} ({m.DRIFT_OLDEST} > bool 0)",
        **{over: f"sum {by(*over.labels)} ({metric})" for metric, over in DRIFT.items()},
        FAULTS: f"sum {by(*CLUSTER, 'fault')} ({m.DRIFT_FAULT})",
        UNROUTABLE: f"max {by(*CLUSTER, 'reason')} ({m.UNROUTABLE_SERVICES})",
        SERVICE_UNROUTABLE: f"count {by(*SERVICE, 'reason')} ({m.SERVICE_UNROUTABLE})",
        SERVICE_DRIFT: f"count {by(*SERVICE, 'kind')} ({m.DRIFT_SERVICE})",
    }


def _services(window: str) -> Mapping[Metric, str]:
    return {
        CONNECTIONS: f"sum {by(*SERVICE)} (rate({m.NEW_CONNECTIONS}[{window}]))",
        IMBALANCE: f"max {by(*SERVICE)} ({m.IMBALANCE})",
    }


def _tables(window: str) -> Mapping[Metric, str]:
    servers = f"sum {by(*NODE, 'scheduler')} ({m.IPVS_VIRTUAL_SERVERS})"
    empty = f"sum {by(*NODE)} ({m.IPVS_EMPTY_VIRTUAL_SERVERS})"
    return {
        CONNTRACK_FILL: f"max {by(*NODE)} ({m.CONNTRACK_ENTRIES} / ({m.CONNTRACK_LIMIT} > 0))",
        CONNTRACK_FULLEST: f"max {by(*CLUSTER)} ({CONNTRACK_FILL})",
        VIRTUAL_SERVERS: f"avg {by(*CLUSTER, 'scheduler')} ({servers})",
        EMPTY_VIRTUAL_SERVERS: f"max {by(*CLUSTER)} ({empty})",
        UNBOUND_ADDRESSES: f"sum {by(*CLUSTER)} ({m.IPVS_UNBOUND_ADDRESSES})",
        IPVS_CONNECTIONS: f"sum {by(*CLUSTER)} (rate({m.IPVS_CONNECTIONS_TOTAL}[{window}]))",
    }


def _lost(window: str) -> list[Record]:
    return [
        Record(
            CONNTRACK_LOST,
            f"sum {by(*CLUSTER)} (rate({m.CONNTRACK[kind]}[{window}]))",
            {"kind": kind},
        )
        for kind in LOST
    ]


def _exporters(job: str, window: str) -> Mapping[Metric, str]:
    up = f'up{{job="{job}",node!=""}}'
    cpu = f"rate({m.COLLECTOR_CPU}[{window}])"
    return {
        EXPORTERS: f"count {by(*CLUSTER)} ({up})",
        EXPORTERS_UP: f"sum {by(*CLUSTER)} ({up})",
        KERNELS: f"count {by(*CLUSTER, 'kernel')} ({m.NODE_INFO})",
        STATES: f"sum {by(*CLUSTER, 'collector', 'state')} ({m.COLLECTOR_STATE})",
        CPU: f"sum {by(*NODE)} ({cpu})",
        COLLECTOR_CPU: f"avg {by(*CLUSTER, 'collector')} ({cpu})",
        RESYNCS: f"sum {by(*CLUSTER, 'reason')} (rate({m.RESYNCS}[{window}]))",
        SNAPSHOT_AGE: f"max {by(*CLUSTER, 'backend')} ({m.SNAPSHOT_AGE})",
        SERIES: f"sum {by(*CLUSTER)} ({m.SERIES})",
    }
