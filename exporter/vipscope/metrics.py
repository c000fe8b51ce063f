"""The catalogue: every metric that vipscope exports, spelled once.

Exposition, recording rules, dashboards and METRICS.md all take names and labels from here, so a
typo is a NameError and an undeclared label an exception, never a silent hole in a graph.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family

from vipscope.snapshot import Histogram

Kind = Literal["gauge", "counter", "histogram", "summary"]
"""A summary here is quantiles only, without count and sum."""
Role = Literal["node", "cluster", "both"]
Stability = Literal["stable", "experimental"]


@dataclass(frozen=True, eq=False)
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
        """The PromQL selector; a value that starts with `~` is a regular expression.

        >>> RULES.select(owner="kube-proxy", table="~nat|filter")
        'vipscope_rules{owner="kube-proxy",table=~"nat|filter"}'
        """
        for label in matchers:
            if label not in self.labels:
                raise ValueError(f"{self.name} has no label {label!r}")
        parts = (
            f"{label}=~{_quoted(value[1:])}" if value[:1] == "~" else f"{label}={_quoted(value)}"
            for label, value in matchers.items()
        )
        return f"{self.name}{{{','.join(parts)}}}"


def _quoted(value: str) -> str:
    """A PromQL string."""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


class Samples:
    """The samples of one metric on their way to a prometheus_client family."""

    __slots__ = ("family", "metric")

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        families = {
            "gauge": GaugeMetricFamily,
            "counter": CounterMetricFamily,
            "histogram": HistogramMetricFamily,
            "summary": GaugeMetricFamily,  # prometheus_client's own has no quantiles
        }
        self.family: Family = families[metric.kind](
            metric.name, metric.help, labels=metric.labels or None
        )
        self.family.type = metric.kind

    def add(self, *values: str, value: float) -> Samples:
        """Add a sample. Raises ValueError when label values and labels differ in number."""
        self._check(values)
        self.family.add_metric(values, value)  # type: ignore[attr-defined]
        return self

    def add_histogram(self, *values: str, value: Histogram) -> Samples:
        """Add a histogram's samples. Raises ValueError as `add` does."""
        self._check(values)
        bounds = (*(format(bound, "g") for bound in value.bounds), "+Inf")
        buckets = [*zip(bounds, itertools.accumulate(value.counts), strict=True)]
        self.family.add_metric(values, buckets, value.sum)  # type: ignore[attr-defined]
        return self

    def _check(self, values: tuple[str, ...]) -> None:
        if len(values) != len(self.metric.labels):
            raise ValueError(f"{self.metric.name} takes {self.metric.labels}, got {values}")


EXPORTER = "Exporter"
RULESET = "Ruleset"
IPVS = "IPVS"
CONNTRACK_SECTION = "Connection tracking"
PRESSURE_SECTION = "Pressure"
KUBE_PROXY_SECTION = "kube-proxy"
CLUSTER = "Services and EndpointSlices"
DRIFT = "Drift and latency"

BUILD_INFO = Metric(
    "vipscope_build_info", "gauge", "1, labelled by vipscope's and Python's version.",
    ("version", "python"), "both", EXPORTER,
)  # fmt: skip
NODE_INFO = Metric(
    "vipscope_node_info", "gauge", "1, labelled by the node's name, zone and kernel release.",
    ("nodename", "zone", "kernel"), "node", EXPORTER,
)  # fmt: skip
COLLECTOR_STATE = Metric(
    "vipscope_collector_state", "gauge",
    "1 for the state in which the collector's last read ended, 0 for the others: ok, absent (the "
    "node has no such thing), denied (privilege), timeout, failed, disabled.",
    ("collector", "state"), "both", EXPORTER,
)  # fmt: skip
COLLECTOR_DURATION = Metric(
    "vipscope_collector_duration_seconds", "gauge", "Wall time of the collector's last read.",
    ("collector",), "both", EXPORTER,
)  # fmt: skip
COLLECTOR_CPU = Metric(
    "vipscope_collector_cpu_seconds_total", "counter", "CPU time of all the collector's reads.",
    ("collector",), "both", EXPORTER,
)  # fmt: skip
COLLECTOR_LAST_SUCCESS = Metric(
    "vipscope_collector_last_success_timestamp_seconds", "gauge",
    "Unix time of the collector's last read that ended ok.",
    ("collector",), "both", EXPORTER,
)  # fmt: skip
WEB_CONFIG_RELOAD_OK = Metric(
    "vipscope_web_config_last_reload_successful", "gauge",
    "1 when the web configuration file and the files that it names were good at the last reload, 0 "
    "when what was good before is still in force. Absent without --web.config.file.",
    (), "both", EXPORTER,
)  # fmt: skip
WEB_CONFIG_RELOAD_TIME = Metric(
    "vipscope_web_config_last_reload_success_timestamp_seconds", "gauge",
    "Unix time of the last reload, or start, at which they were good.",
    (), "both", EXPORTER,
)  # fmt: skip
SERIES = Metric(
    "vipscope_series", "gauge", "Series in this exposition, this one included.",
    (), "both", EXPORTER,
)  # fmt: skip

PROXY_MODE = Metric(
    "vipscope_proxy_mode", "gauge",
    "1 for each kube-proxy mode whose program the kernel holds: iptables, ipvs, nftables, or none. "
    "Two at 1 are leftovers. A mode that could not be looked for is absent.",
    ("mode",), "node", RULESET,
)  # fmt: skip
RULES = Metric(
    "vipscope_rules", "gauge",
    "Rules in the kernel, by the owner and class of the chain that holds them.",
    ("backend", "family", "table", "owner", "class"), "node", RULESET,
)  # fmt: skip
CHAINS = Metric(
    "vipscope_chains", "gauge", "Chains in the kernel, base chains included.",
    ("backend", "family", "table", "owner", "class"), "node", RULESET,
)  # fmt: skip
SET_ELEMENTS = Metric(
    "vipscope_set_elements", "gauge",
    "Elements of kube-proxy's named sets and maps; all affinity sets as one, and absent while the "
    "budget does not allow to count them again.",
    ("family", "table", "set"), "node", RULESET,
)  # fmt: skip
SERVICE_RULE_DEPTH = Metric(
    "vipscope_service_rule_depth", "summary",
    "Rules that a new connection's first packet is checked against before its Service's own: "
    "quantile over Service ports.",
    ("family", "quantile"), "node", RULESET,
)  # fmt: skip
GENERATION = Metric(
    "vipscope_ruleset_generation", "gauge",
    "nf_tables generation of the counted state; each commit adds 1.",
    (), "node", RULESET,
)  # fmt: skip
TRANSACTIONS = Metric(
    "vipscope_ruleset_transactions_total", "counter",
    "Committed nf_tables transactions by the writer's process name; \"\" where it is not known.",
    ("process",), "node", RULESET,
)  # fmt: skip
CHANGES = Metric(
    "vipscope_ruleset_changes_total", "counter",
    "nf_tables objects (rule, chain, set, element) added and deleted, as notified.",
    ("object", "op"), "node", RULESET,
)  # fmt: skip
RESYNCS = Metric(
    "vipscope_ruleset_resyncs_total", "counter",
    "Full reads of nf_tables by reason: start, overrun, interrupted, periodic.",
    ("reason",), "node", RULESET,
)  # fmt: skip
LAST_CHANGE = Metric(
    "vipscope_ruleset_last_change_timestamp_seconds", "gauge",
    "Unix time of the last nf_tables commit seen; absent before the first.",
    (), "node", RULESET,
)  # fmt: skip
SNAPSHOT_AGE = Metric(
    "vipscope_ruleset_snapshot_age_seconds", "gauge",
    "Time since the counted state of nft, legacy or ipvs was last known to be the kernel's.",
    ("backend",), "node", RULESET,
)  # fmt: skip
XTABLES_ENTRIES = Metric(
    "vipscope_xtables_entries", "gauge",
    "Entries of an iptables-legacy table, chain heads included, fresh even while a count is due.",
    ("family", "table"), "node", RULESET,
)  # fmt: skip
XTABLES_BYTES = Metric(
    "vipscope_xtables_table_bytes", "gauge", "Kernel memory of an iptables-legacy table's entries.",
    ("family", "table"), "node", RULESET,
)  # fmt: skip

IPVS_VIRTUAL_SERVERS = Metric(
    "vipscope_ipvs_virtual_servers", "gauge", "IPVS virtual servers.",
    ("family", "protocol", "scheduler"), "node", IPVS,
)  # fmt: skip
IPVS_EMPTY_VIRTUAL_SERVERS = Metric(
    "vipscope_ipvs_empty_virtual_servers", "gauge", "IPVS virtual servers without a real server.",
    ("family", "protocol"), "node", IPVS,
)  # fmt: skip
IPVS_REAL_SERVERS = Metric(
    "vipscope_ipvs_real_servers", "gauge",
    "IPVS real servers: active, or drained (weight 0: no new connections).",
    ("family", "protocol", "state"), "node", IPVS,
)  # fmt: skip
IPVS_CONNECTIONS = Metric(
    "vipscope_ipvs_connections", "gauge", "Connections of all real servers.",
    ("state",), "node", IPVS,
)  # fmt: skip
IPVS_CONNECTIONS_TOTAL = Metric(
    "vipscope_ipvs_connections_total", "counter", "Connections that IPVS has scheduled.",
    (), "node", IPVS,
)  # fmt: skip
IPVS_PACKETS = Metric(
    "vipscope_ipvs_packets_total", "counter", "Packets through IPVS.", ("direction",), "node", IPVS
)
IPVS_BYTES = Metric(
    "vipscope_ipvs_bytes_total", "counter", "Bytes through IPVS.", ("direction",), "node", IPVS
)
IPVS_SYSCTL = Metric(
    "vipscope_ipvs_sysctl", "gauge",
    "IPVS settings that are known to delay connections or to stall softirqs.",
    ("name",), "node", IPVS,
)  # fmt: skip
IPVS_SERVICES = Metric(
    "vipscope_ipvs_services", "gauge",
    "IPv4 virtual servers by the kernel's own count, fresh even while the table is due.",
    (), "node", IPVS,
)  # fmt: skip
IPVS_UNBOUND_ADDRESSES = Metric(
    "vipscope_ipvs_unbound_addresses", "gauge",
    "Addresses of virtual servers that no device of the node has: packets to them are lost.",
    ("family",), "node", IPVS,
)  # fmt: skip

CONNTRACK_ENTRIES = Metric(
    "vipscope_conntrack_entries", "gauge", "Tracked connections.", (), "node", CONNTRACK_SECTION
)
CONNTRACK_LIMIT = Metric(
    "vipscope_conntrack_entries_limit", "gauge", "Connections that may be tracked.",
    (), "node", CONNTRACK_SECTION,
)  # fmt: skip
CONNTRACK_BUCKETS = Metric(
    "vipscope_conntrack_buckets", "gauge", "Buckets of the connection tracking hash table.",
    (), "node", CONNTRACK_SECTION,
)  # fmt: skip
_CONNTRACK_HELP = {
    "found": "Look-ups that found an entry other than by the packet's own connection.",
    "invalid": "Packets that could not be tracked.",
    "insert": "Entries inserted outside the fast path.",
    "insert_failed": "Entries that could not be inserted, mostly because another of the same tuple "
    "was first; their packets are dropped. Before Linux 5.10 also clashes that were resolved.",
    "drop": "Packets dropped because tracking failed, among others for a full table, or because "
    "another entry of the same tuple was first.",
    "early_drop": "Entries dropped to make room for new ones in a full table.",
    "error": "Packets dropped for an error in an ICMP or protocol header.",
    "search_restart": "Look-ups begun again because the table was resized under them.",
    "clash_resolve": "Insertions that clashed and were resolved.",
    "chain_too_long": "Insertions refused because their hash bucket's chain was too long.",
}
CONNTRACK = {
    name: Metric(f"vipscope_conntrack_{name}_total", "counter", text, (), "node", CONNTRACK_SECTION)
    for name, text in _CONNTRACK_HELP.items()
}
"""Statistic -> its counter."""

TCP_SYN_RETRANSMITS = Metric(
    "vipscope_tcp_syn_retransmits_total", "counter",
    "SYN and SYN-ACK segments sent again: each is a connection that waited a second or more.",
    (), "node", PRESSURE_SECTION,
)  # fmt: skip
SOFTNET_DROPPED = Metric(
    "vipscope_softnet_dropped_total", "counter", "Packets dropped at a full input queue, all CPUs.",
    (), "node", PRESSURE_SECTION,
)  # fmt: skip
SOFTNET_SQUEEZED = Metric(
    "vipscope_softnet_time_squeezed_total", "counter",
    "Times that packet processing ran out of its time slice with work left, all CPUs.",
    (), "node", PRESSURE_SECTION,
)  # fmt: skip
SOFTIRQ_SECONDS = Metric(
    "vipscope_cpu_softirq_seconds_total", "counter", "CPU time spent in softirqs, all CPUs.",
    (), "node", PRESSURE_SECTION,
)  # fmt: skip
LOCK_HELD = Metric(
    "vipscope_xtables_lock_held", "gauge",
    "Holders of /run/xtables.lock; absent where other processes' locks cannot be seen.",
    (), "node", PRESSURE_SECTION,
)  # fmt: skip
LOCK_WAITERS = Metric(
    "vipscope_xtables_lock_waiters", "gauge",
    "Processes blocked on /run/xtables.lock; absent where they cannot be seen.",
    (), "node", PRESSURE_SECTION,
)  # fmt: skip

KUBE_PROXY_UP = Metric(
    "vipscope_kube_proxy_up", "gauge", "1 when kube-proxy's /healthz says that it is healthy.",
    (), "node", KUBE_PROXY_SECTION,
)  # fmt: skip
KUBE_PROXY_SYNC_PENDING = Metric(
    "vipscope_kube_proxy_sync_pending_seconds", "gauge",
    "How long kube-proxy has had a change queued that it has not synchronised; 0 when none is.",
    (), "node", KUBE_PROXY_SECTION,
)  # fmt: skip
KUBE_PROXY_LAST_SYNC = Metric(
    "vipscope_kube_proxy_last_sync_timestamp_seconds", "gauge",
    "Unix time of kube-proxy's last successful synchronisation.",
    (), "node", KUBE_PROXY_SECTION,
)  # fmt: skip
KUBE_PROXY_RESTORE_FAILURES = Metric(
    "vipscope_kube_proxy_restore_failures_total", "counter",
    "Writes of rules that kube-proxy reports as failed.",
    (), "node", KUBE_PROXY_SECTION,
)  # fmt: skip
KUBE_PROXY_INTENDED_RULES = Metric(
    "vipscope_kube_proxy_intended_rules", "gauge",
    "Rules that kube-proxy means to have written; it keeps this number when the write fails.",
    ("family", "table"), "node", KUBE_PROXY_SECTION,
)  # fmt: skip

SERVICES = Metric(
    "vipscope_services", "gauge",
    "Services by type: ClusterIP, NodePort, LoadBalancer, ExternalName, or Headless for one without"
    " a cluster IP. Those of another proxy than kube-proxy are not among them, here and below.",
    ("type",), "cluster", CLUSTER,
)  # fmt: skip
SERVICES_SESSION_AFFINITY = Metric(
    "vipscope_services_session_affinity", "gauge", "Services with session affinity.",
    (), "cluster", CLUSTER,
)  # fmt: skip
SERVICES_TRAFFIC_POLICY = Metric(
    "vipscope_services_traffic_policy", "gauge",
    "Services with a cluster IP by their internal traffic policy, Cluster or Local, and those that "
    "are reachable from outside by their external one.",
    ("direction", "policy"), "cluster", CLUSTER,
)  # fmt: skip
SERVICES_TOPOLOGY = Metric(
    "vipscope_services_topology", "gauge",
    "Services that ask for near endpoints: by annotation (Auto), or by traffic distribution "
    "(PreferClose, PreferSameZone, PreferSameNode, other).",
    ("mode",), "cluster", CLUSTER,
)  # fmt: skip
SLICES = Metric(
    "vipscope_endpointslices", "gauge",
    "EndpointSlices that kube-proxy watches: not those of headless Services, here and below.",
    ("address_type",), "cluster", CLUSTER,
)  # fmt: skip
SLICE_ENDPOINTS = Metric(
    "vipscope_endpointslice_endpoints", "histogram",
    "Endpoints in an EndpointSlice, over all that there are now. A state and not a count of "
    "events: take histogram_quantile of it as it is, without rate().",
    (), "cluster", CLUSTER,
)  # fmt: skip
ENDPOINTS = Metric(
    "vipscope_endpoints", "gauge",
    "Endpoints in all EndpointSlices by condition: each is either ready or not_ready, and may be "
    "serving and terminating beside that. A dual-stack backend is two.",
    ("condition",), "cluster", CLUSTER,
)  # fmt: skip
SLICE_EVENTS = Metric(
    "vipscope_endpointslice_events_total", "counter",
    "EndpointSlices added, modified and deleted: what every kube-proxy is sent, too. What was "
    "there at the start is not counted; after a gap in the watch, one for each that differs.",
    ("event",), "cluster", CLUSTER,
)  # fmt: skip
SLICE_EVENT_BYTES = Metric(
    "vipscope_endpointslice_event_bytes_total", "counter",
    "JSON bytes of these events. Times the number of nodes it is the traffic that they cause, at "
    "most: kube-proxy takes a denser encoding.",
    (), "cluster", CLUSTER,
)  # fmt: skip
ENDPOINT_CHANGES = Metric(
    "vipscope_endpoint_changes_total", "counter",
    "Endpoints added and removed, and those that became ready, unready, or began to terminate. One "
    "for an endpoint and event, so a terminating one does not count as unready, too.",
    ("change",), "cluster", CLUSTER,
)  # fmt: skip
SERVICE_ENDPOINT_CHANGES = Metric(
    "vipscope_service_endpoint_changes_total", "counter",
    "All these changes by Service, for the --top-services that change most. A Service's series "
    "counts from when it got one, so each series only grows; the rest is in service \"\".",
    ("namespace", "service"), "cluster", CLUSTER,
)  # fmt: skip
SERVICE_UNROUTABLE = Metric(
    "vipscope_service_unroutable", "gauge",
    "1 for each Service port that routes to nobody, and why; port \"\" when it has no name. Not "
    "those that are headless, or that were scaled to zero.",
    ("namespace", "service", "port", "reason"), "both", CLUSTER,
)  # fmt: skip
UNROUTABLE_SERVICES = Metric(
    "vipscope_unroutable_services", "gauge",
    "Services of which a port routes to nobody. A reason that is not looked for is absent, and so "
    "is external_name_unresolvable while of any name nobody can tell.",
    ("reason",), "both", CLUSTER,
)  # fmt: skip
WATCH_RESTARTS = Metric(
    "vipscope_watch_restarts_total", "counter",
    "How often a watch of the API server had to start anew. closed, the server's own doing every "
    "few minutes, is no trouble.",
    ("resource", "reason"), "cluster", CLUSTER,
)  # fmt: skip
WATCH_LAST_EVENT = Metric(
    "vipscope_watch_last_event_timestamp_seconds", "gauge",
    "Unix time at which the API server was last heard: a list, an event, or the bookmark that it "
    "sends about every minute. What is exported of the cluster is as old.",
    ("resource",), "cluster", CLUSTER,
)  # fmt: skip
WATCH_OBJECTS = Metric(
    "vipscope_watch_objects", "gauge", "Objects of the API that are held.",
    ("resource",), "cluster", CLUSTER,
)  # fmt: skip

DRIFT_SERVICES = Metric(
    "vipscope_drift_services", "gauge",
    "Service ports that the API wants and the kernel lacks (missing), or the reverse (orphaned), "
    "for longer than the grace period. While a fault cuts all Services off, all are missing.",
    ("kind",), "node", DRIFT,
)  # fmt: skip
DRIFT_ENDPOINTS = Metric(
    "vipscope_drift_endpoints", "gauge",
    "Endpoints of Service ports that the kernel does not send to (missing), or still sends to "
    "although they are gone (stale), for longer than the grace period.",
    ("kind",), "node", DRIFT,
)  # fmt: skip
DRIFT_OLDEST = Metric(
    "vipscope_drift_oldest_seconds", "gauge",
    "Age of the oldest disagreement between kernel and API, counted from when it was first seen "
    "here; 0 when none has lasted for the grace period.",
    (), "node", DRIFT,
)  # fmt: skip
DRIFT_FAULT = Metric(
    "vipscope_drift_fault", "gauge",
    "1 while something cuts off Services at large: empty (the kernel holds none of kube-proxy's "
    "ways in), prerouting (packets of pods and from outside never reach them), output (nor those "
    "of the node), node_ports (nor those for node ports).",
    ("fault",), "node", DRIFT,
)  # fmt: skip
DRIFT_SERVICE = Metric(
    "vipscope_drift_service", "gauge",
    "1 for the oldest disagreements: missing, orphaned, missing_endpoints or stale_endpoints. "
    "Service \"\" is one that the API never had.",
    ("namespace", "service", "port", "kind"), "node", DRIFT,
)  # fmt: skip
PROGRAMMING_LATENCY = Metric(
    "vipscope_programming_latency_seconds", "histogram",
    "Time from an endpoint's change, as its EndpointSlice tells it, to the kernel's commit. Only "
    "where the kernel tells of commits: not of iptables-legacy and IPVS.",
    (), "node", DRIFT,
)  # fmt: skip
PROGRAMMING_LATENCY_FROM_EVENT = Metric(
    "vipscope_programming_latency_from_event_seconds", "histogram",
    "The same from when this node heard of the change: kube-proxy's own part.",
    (), "node", DRIFT,
)  # fmt: skip
NEW_CONNECTIONS = Metric(
    "vipscope_service_new_connections_total", "counter",
    "New connections of the busiest Service ports, by the rules' own packet counters; Service \"\" "
    "is all others. What a chain counted between the last look and its being rewritten is not "
    "known. Mode iptables only.",
    ("namespace", "service", "port"), "node", DRIFT,
)  # fmt: skip
IMBALANCE = Metric(
    "vipscope_service_backend_imbalance_ratio", "gauge",
    "The busiest backend's new connections over the mean of all of the Service port's, of the "
    "busiest Service ports, lately and since its backends are those that they are. Mode iptables "
    "only.",
    ("namespace", "service", "port"), "node", DRIFT,
)  # fmt: skip
SAME_ZONE = Metric(
    "vipscope_backend_same_zone_ratio", "gauge",
    "Share of the endpoints that this node sends to which are in its own zone.",
    (), "node", DRIFT,
)  # fmt: skip
PROBE_DURATION = Metric(
    "vipscope_probe_duration_seconds", "histogram",
    "Latency of the prober's connections through a Service (path vip) and straight to one of its "
    "endpoints (direct). tcp: from the first SYN to the SYN-ACK, by the kernel's clock. http: that "
    "and from the request to the status line. dns: from query to answer. Failures are not in it.",
    ("probe", "path"), "node", DRIFT,
)  # fmt: skip
PROBE_FAILURES = Metric(
    "vipscope_probe_failures_total", "counter",
    "The prober's connections that failed: refused, timeout, reset, unreachable (no route, "
    "prohibited, no port left), dns (an answer that is an error, or none to the query), http (no "
    "status line, or a status other than 2xx and 3xx).",
    ("probe", "path", "reason"), "node", DRIFT,
)  # fmt: skip
FIRST_PACKET_COST = Metric(
    "vipscope_first_packet_cost_seconds", "gauge",
    "What a connection's first packet pays, over the last 10 minutes. measured: median handshake "
    "through a Service minus median handshake straight to an endpoint; where rules are checked one "
    "after another, the straight one is checked against them all, so that it can be negative. "
    "modelled: the median of vipscope_service_rule_depth times what a rule costs on this node. It "
    "is calibrated on loopback, where a handshake of the prober with itself is checked against all "
    "rules, and what is sent then against no Service's: the median of what the one takes longer "
    "than the other in warm caches, over the depth of the deepest Service. Absent where that is "
    "below 500, too few to tell. It is the least that they cost: in cold caches rules take longer.",
    ("kind",), "node", DRIFT,
)  # fmt: skip

CATALOGUE: tuple[Metric, ...] = tuple(
    dict.fromkeys(
        each
        for value in list(globals().values())
        for each in (value.values() if isinstance(value, dict) else (value,))
        if isinstance(each, Metric)
    )
)
"""Every metric, in the order in which this file spells them."""
