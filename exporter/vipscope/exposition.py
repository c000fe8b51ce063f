"""Snapshot in, exposition text out.

`body` and `of_the_moment` are pure: records to prometheus_client families. `Exposition` renders
them: the body off the event loop and once a snapshot, however many ask at once.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from prometheus_client import exposition as formats
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector as Registry

from vipscope import __version__
from vipscope import metrics as m
from vipscope.dataplane import cost
from vipscope.dataplane.depth import depths_by_family, nearest_rank
from vipscope.dataplane.mode import proxy_modes
from vipscope.snapshot import (
    Cluster,
    Conntrack,
    Drift,
    Follow,
    Histogram,
    Ipvs,
    KubeProxy,
    Outcome,
    Pressure,
    Probes,
    Record,
    Ruleset,
    Snapshot,
)

QUANTILES = (0.5, 0.9, 0.99, 1.0)
FAULTS = ("empty", "prerouting", "output", "node_ports")
"""What may cut off Services at large: the keys of `Drift.faults`."""
OPENMETRICS_END = b"# EOF\n"

R = TypeVar("R", bound=Record)


class _Families:
    """Families by metric, in catalogue order, whichever collector adds to them first."""

    def __init__(self) -> None:
        self._samples: dict[m.Metric, m.Samples] = {}

    def add(self, metric: m.Metric, *labels: str, value: float | None) -> None:
        """Add a sample; None is no sample."""
        if value is not None:
            self._of(metric).add(*labels, value=value)

    def add_histogram(self, metric: m.Metric, *labels: str, value: Histogram) -> None:
        """Add a histogram's samples."""
        self._of(metric).add_histogram(*labels, value=value)

    def _of(self, metric: m.Metric) -> m.Samples:
        if metric not in self._samples:
            self._samples[metric] = m.Samples(metric)
        return self._samples[metric]

    def families(self) -> list[Family]:
        return [self._samples[each].family for each in m.CATALOGUE if each in self._samples]


def body(snapshot: Snapshot, wanted: Collection[str]) -> list[Family]:
    """All that a snapshot says of the wanted collectors, whenever it is asked."""
    out = _Families()
    _vitals(out, snapshot, wanted)
    if Outcome.OK in {
        snapshot.readings[name].outcome for name in wanted & snapshot.readings.keys()
    }:
        for mode, present in proxy_modes(snapshot, wanted).items():
            out.add(m.PROXY_MODE, mode, value=present)
    records = [
        reading.record
        for name, reading in sorted(snapshot.readings.items())
        if name in wanted and reading.record is not None
    ]
    depths = depths_by_family([each for each in records if isinstance(each, Ruleset)])
    for family, ascending in depths.items():
        for quantile in QUANTILES if ascending else ():
            value = nearest_rank(ascending, quantile)
            out.add(m.SERVICE_RULE_DEPTH, family, f"{quantile:g}", value=value)
    _watches(out, records)
    for record in records:
        if isinstance(record, Probes):
            _first_packet_cost(out, record, depths)
        _SECTIONS[type(record)](out, record)
    return out.families()


def _ruleset(out: _Families, ruleset: Ruleset) -> None:
    for key, count in sorted(ruleset.counts.items()):
        out.add(m.RULES, ruleset.backend, *key, value=count.rules)
        out.add(m.CHAINS, ruleset.backend, *key, value=count.chains)
    for key3, elements in sorted(ruleset.set_elements.items()):
        out.add(m.SET_ELEMENTS, *key3, value=elements)
    for key2, (entries, size) in sorted(ruleset.table_sizes.items()):
        out.add(m.XTABLES_ENTRIES, *key2, value=entries)
        out.add(m.XTABLES_BYTES, *key2, value=size)
    out.add(m.GENERATION, value=ruleset.generation)
    if ruleset.follow is not None:
        _follow(out, ruleset.follow)


def _follow(out: _Families, follow: Follow) -> None:
    for process, count in sorted(follow.transactions.items()):
        out.add(m.TRANSACTIONS, process, value=count)
    for change, count in sorted(follow.changes.items()):
        out.add(m.CHANGES, *change, value=count)
    for reason, count in sorted(follow.resyncs.items()):
        out.add(m.RESYNCS, reason, value=count)
    out.add(m.LAST_CHANGE, value=follow.last_change)


def _ipvs(out: _Families, ipvs: Ipvs) -> None:
    for key3, count in sorted(ipvs.virtual_servers.items()):
        out.add(m.IPVS_VIRTUAL_SERVERS, *key3, value=count)
    for key2, count in sorted(ipvs.empty_virtual_servers.items()):
        out.add(m.IPVS_EMPTY_VIRTUAL_SERVERS, *key2, value=count)
    for key3, count in sorted(ipvs.real_servers.items()):
        out.add(m.IPVS_REAL_SERVERS, *key3, value=count)
    out.add(m.IPVS_CONNECTIONS, "active", value=ipvs.active_connections)
    out.add(m.IPVS_CONNECTIONS, "inactive", value=ipvs.inactive_connections)
    out.add(m.IPVS_CONNECTIONS_TOTAL, value=ipvs.connections)
    for direction, count in sorted(ipvs.packets.items()):
        out.add(m.IPVS_PACKETS, direction, value=count)
    for direction, count in sorted(ipvs.bytes.items()):
        out.add(m.IPVS_BYTES, direction, value=count)
    for name, value in sorted(ipvs.sysctls.items()):
        out.add(m.IPVS_SYSCTL, name, value=value)
    out.add(m.IPVS_SERVICES, value=ipvs.services)
    for family, count in sorted((ipvs.unbound_addresses or {}).items()):
        out.add(m.IPVS_UNBOUND_ADDRESSES, family, value=count)


def _conntrack(out: _Families, conntrack: Conntrack) -> None:
    out.add(m.CONNTRACK_ENTRIES, value=conntrack.entries)
    out.add(m.CONNTRACK_LIMIT, value=conntrack.limit)
    out.add(m.CONNTRACK_BUCKETS, value=conntrack.buckets)
    for name, value in conntrack.statistics.items():
        out.add(m.CONNTRACK[name], value=value)


def _pressure(out: _Families, pressure: Pressure) -> None:
    out.add(m.TCP_SYN_RETRANSMITS, value=pressure.tcp_syn_retransmits)
    out.add(m.SOFTNET_DROPPED, value=pressure.softnet_dropped)
    out.add(m.SOFTNET_SQUEEZED, value=pressure.softnet_time_squeezed)
    out.add(m.SOFTIRQ_SECONDS, value=pressure.softirq_seconds)
    out.add(m.LOCK_HELD, value=pressure.xtables_lock_held)
    out.add(m.LOCK_WAITERS, value=pressure.xtables_lock_waiters)


def _kube_proxy(out: _Families, kube_proxy: KubeProxy) -> None:
    out.add(m.KUBE_PROXY_UP, value=kube_proxy.healthy)
    out.add(m.KUBE_PROXY_SYNC_PENDING, value=kube_proxy.sync_pending_seconds)
    out.add(m.KUBE_PROXY_LAST_SYNC, value=kube_proxy.last_sync)
    out.add(m.KUBE_PROXY_RESTORE_FAILURES, value=kube_proxy.restore_failures)
    for key, value in sorted(kube_proxy.intended_rules.items()):
        out.add(m.KUBE_PROXY_INTENDED_RULES, *key, value=value)


def _probes(out: _Families, probes: Probes) -> None:
    for key2, histogram in sorted(probes.durations.items()):
        out.add_histogram(m.PROBE_DURATION, *key2, value=histogram)
    for key3, count in sorted(probes.failures.items()):
        out.add(m.PROBE_FAILURES, *key3, value=count)


def _first_packet_cost(
    out: _Families, probes: Probes, depths: Mapping[str, tuple[int, ...]]
) -> None:
    out.add(m.FIRST_PACKET_COST, "measured", value=cost.measured(probes.handshakes))
    modelled = cost.modelled(depths, probes.loopback)
    out.add(m.FIRST_PACKET_COST, "modelled", value=modelled)


def _cluster(out: _Families, cluster: Cluster) -> None:
    for metric, counts in (
        (m.SERVICES, cluster.services),
        (m.SERVICES_TOPOLOGY, cluster.topology),
        (m.SLICES, cluster.slices),
        (m.ENDPOINTS, cluster.endpoints),
        (m.SLICE_EVENTS, cluster.slice_events),
        (m.ENDPOINT_CHANGES, cluster.endpoint_changes),
        (m.UNROUTABLE_SERVICES, cluster.unroutable_services),
    ):
        for label, count in sorted(counts.items()):
            out.add(metric, label, value=count)
    out.add(m.SERVICES_SESSION_AFFINITY, value=cluster.session_affinity)
    for policy, count in sorted(cluster.traffic_policies.items()):
        out.add(m.SERVICES_TRAFFIC_POLICY, *policy, value=count)
    out.add_histogram(m.SLICE_ENDPOINTS, value=cluster.slice_endpoints)
    out.add(m.SLICE_EVENT_BYTES, value=cluster.slice_event_bytes)
    for service, count in sorted(cluster.service_changes.items()):
        out.add(m.SERVICE_ENDPOINT_CHANGES, *service, value=count)
    for port in sorted(cluster.unroutable):
        out.add(m.SERVICE_UNROUTABLE, *port, value=1)


def _drift(out: _Families, drift: Drift) -> None:
    for kind, count in sorted(drift.services.items()):
        out.add(m.DRIFT_SERVICES, kind, value=count)
    for kind, count in sorted(drift.endpoints.items()):
        out.add(m.DRIFT_ENDPOINTS, kind, value=count)
    out.add(m.DRIFT_OLDEST, value=drift.oldest)
    for fault in FAULTS:
        out.add(m.DRIFT_FAULT, fault, value=fault in drift.faults)
    # Several orphans without a name, or both families of a port, are one series.
    named = {(each.namespace, each.service, each.port, each.kind) for each in drift.named}
    for key in sorted(named):
        out.add(m.DRIFT_SERVICE, *key, value=1)
    for port in drift.unroutable:
        out.add(m.SERVICE_UNROUTABLE, *port, value=1)
    for reason, count in sorted(drift.unroutable_services.items()):
        out.add(m.UNROUTABLE_SERVICES, reason, value=count)
    _traffic(out, drift)


def _traffic(out: _Families, drift: Drift) -> None:
    """What the node's program does, beside how right it is."""
    for key, connections in sorted((drift.new_connections or {}).items()):
        out.add(m.NEW_CONNECTIONS, *key, value=connections)
    for key, ratio in sorted((drift.imbalance or {}).items()):
        out.add(m.IMBALANCE, *key, value=ratio)
    out.add(m.SAME_ZONE, value=drift.same_zone_ratio)
    for metric, histogram in (
        (m.PROGRAMMING_LATENCY, drift.since_change),
        (m.PROGRAMMING_LATENCY_FROM_EVENT, drift.since_event),
    ):
        if histogram is not None:
            out.add_histogram(metric, value=histogram)


def _watches(out: _Families, records: Iterable[Record]) -> None:
    """Of the first record that tells of any.

    In role all the cluster's and the comparison's watches are of the same resources; what the
    second ones fare shows in the state of their collector.
    """
    told = next((each.watches for each in records if isinstance(each, Cluster | Drift)), {})
    for resource, watch in sorted(told.items()):
        for reason, count in sorted(watch.restarts.items()):
            out.add(m.WATCH_RESTARTS, resource, reason, value=count)
        out.add(m.WATCH_LAST_EVENT, resource, value=watch.last_event)
        out.add(m.WATCH_OBJECTS, resource, value=watch.objects)


_SECTIONS: Mapping[type[Record], Callable[[_Families, Any], None]] = {
    Ruleset: _ruleset,
    Ipvs: _ipvs,
    Conntrack: _conntrack,
    Pressure: _pressure,
    KubeProxy: _kube_proxy,
    Cluster: _cluster,
    Drift: _drift,
    Probes: _probes,
}


def _vitals(out: _Families, snapshot: Snapshot, wanted: Collection[str]) -> None:
    """What is true of the exporter itself and of how its collectors' last reads ended."""
    out.add(m.BUILD_INFO, __version__, platform.python_version(), value=1)
    node = snapshot.node
    records = [reading.record for reading in snapshot.readings.values()]
    zone = next((each.zone for each in records if isinstance(each, Drift)), "")
    out.add(m.NODE_INFO, node.nodename, zone, node.kernel, value=1)
    if snapshot.reload is not None:
        out.add(m.WEB_CONFIG_RELOAD_OK, value=snapshot.reload.ok)
        out.add(m.WEB_CONFIG_RELOAD_TIME, value=snapshot.reload.last_success)
    for name, reading in sorted(snapshot.readings.items()):
        if name not in wanted:
            continue
        for state in Outcome:
            out.add(m.COLLECTOR_STATE, name, state.value, value=reading.outcome is state)
        if reading.duration is not None:
            out.add(m.COLLECTOR_DURATION, name, value=reading.duration)
            out.add(m.COLLECTOR_CPU, name, value=reading.cpu_seconds)
        out.add(m.COLLECTOR_LAST_SUCCESS, name, value=reading.last_success)


def of_the_moment(
    snapshot: Snapshot, wanted: Collection[str], now: float, body_series: int
) -> list[Family]:
    """The few samples that only the moment of the scrape can tell: ages, and the sum of series."""
    out = _Families()
    for name, reading in sorted(snapshot.readings.items()):
        if name in wanted and isinstance(reading.record, Ruleset | Ipvs):
            age = max(0.0, now - reading.record.counted_at)
            out.add(m.SNAPSHOT_AGE, reading.record.backend, value=age)
    ages = sum(len(each.samples) for each in out.families())
    out.add(m.SERIES, value=body_series + ages + 1)
    return out.families()


class _Rendered(Registry):
    """Families as the registry that prometheus_client's encoders take."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


Encoder = Callable[[Registry], bytes]


def choose_encoder(accept: str) -> tuple[Encoder, str]:
    """The encoder and content type for an Accept header; plain text for one that makes no sense."""
    try:
        encoder, content_type = formats.choose_encoder(accept)
        encoder(_Rendered(()))
    except (TypeError, ValueError):  # what prometheus_client raises for a version such as "9z"
        encoder, content_type = formats.choose_encoder("")
    return encoder, content_type


class Exposition:
    """Renders snapshots. A snapshot's body is rendered once a selection and format, in a thread."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._bodies: dict[tuple[frozenset[str], str], asyncio.Future[tuple[bytes, int]]] = {}

    async def render(
        self, snapshot: Snapshot, wanted: frozenset[str], accept: str, now: float
    ) -> tuple[bytes, str]:
        """(exposition, content type) of the wanted collectors, as `accept` asks for it."""
        encoder, content_type = choose_encoder(accept)
        if snapshot is not self._snapshot:
            self._snapshot, self._bodies = snapshot, {}
        key = (wanted, content_type)
        if key not in self._bodies:
            openmetrics = content_type.startswith("application/openmetrics-text")
            self._bodies[key] = asyncio.ensure_future(
                asyncio.to_thread(_encoded_body, snapshot, wanted, encoder, openmetrics)
            )
        # Shielded: one scraper that hangs up must not take the text from the others.
        text, series = await asyncio.shield(self._bodies[key])
        head = encoder(_Rendered(of_the_moment(snapshot, wanted, now, series)))
        return head.removesuffix(OPENMETRICS_END) + text, content_type


def _encoded_body(
    snapshot: Snapshot, wanted: frozenset[str], encoder: Encoder, openmetrics: bool
) -> tuple[bytes, int]:
    families = body(snapshot, wanted)
    if openmetrics:
        families = _with_names_apart(families)
    return encoder(_Rendered(families)), sum(len(each.samples) for each in families)


def _with_names_apart(families: Sequence[Family]) -> list[Family]:
    """The families with no two of one name, as OpenMetrics wants them.

    There a counter's family is named without `_total`. Where a gauge has that name, as the public
    contract has it of vipscope_ipvs_connections, the counter's type goes unsaid.
    """
    gauges = {each.name for each in families if each.type == "gauge"}
    return [
        _untyped(each) if each.type == "counter" and each.name in gauges else each
        for each in families
    ]


def _untyped(counter: Family) -> Family:
    family = Family(f"{counter.name}_total", counter.documentation, "unknown")
    family.samples = counter.samples
    return family
