"""A day of a fleet, as its exporters would have told it: records in, samples with times out.

Rules grow all day. A tenth of the nodes changes from iptables to nftables, one of them forgets to
clean up; some nodes drift; at the end endpoints churn in a storm, and latency rises with it.

Of the day each hour has three scrapes a minute apart, enough for a rate whenever within 5 minutes
it is asked for, and the last hour one a minute.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from prometheus_client.samples import Sample

from vipscope import exposition
from vipscope import metrics as m
from vipscope.dataplane import latency
from vipscope.probe import prober
from vipscope.settings import COLLECTORS
from vipscope.snapshot import (
    Cluster,
    Conntrack,
    Count,
    Disagreement,
    Drift,
    Follow,
    Histogram,
    Ipvs,
    KubeProxy,
    Node,
    Outcome,
    Pressure,
    Probes,
    Reading,
    Record,
    Ruleset,
    Snapshot,
    Watch,
)

MINUTE, HOUR, DAY = 60, 3600, 86_400
END = 1_789_999_200 + 5 * MINUTE
"""Unix time. The subqueries of the rules look at whole hours: one has just passed."""
START = END - DAY

CLUSTER = "c1"
NAMESPACE, SERVICE = "shop", "cart"
SWITCH = END - 45 * MINUTE
DRIFT_BEGINS = START + 22 * HOUR
STORM = END - HOUR // 2

GROUP = 50
"""Nodes of which each has its part; they repeat."""
DRIFTING, FAILING, LEFTOVER, CUT_OFF, IPVS = 7, 9, 3, 12, 6
"""Parts, modulo GROUP, but IPVS modulo 10."""


def name(number: int) -> str:
    """The name of a node."""
    return f"node-{number:04}"


def moments() -> Iterator[int]:
    """Times of the scrapes, ascending."""
    for moment in range(START, END - HOUR, HOUR):
        yield from (moment - MINUTE, moment, moment + MINUTE)
    yield from range(END - HOUR, END + 1, MINUTE)


def lines(nodes: int, wanted: Collection[str]) -> Iterator[str]:
    """OpenMetrics with timestamps: the wanted metrics of that many nodes, and a mesh's latency."""
    for number in range(nodes):
        node = _Node(number)
        text = _Text({"cluster": CLUSTER, "node": name(number)}, wanted)
        before = START - HOUR
        for now in moments():
            node.passes(before, now)
            before = now
            yield from text.of(_samples(node.snapshot(now), frozenset(NODE_ROLE), now), now)
    yield from _cluster_lines(nodes, wanted)
    yield "# EOF\n"


NODE_ROLE = tuple(each for each in COLLECTORS if each != "cluster")


def _cluster_lines(nodes: int, wanted: Collection[str]) -> Iterator[str]:
    text = _Text({"cluster": CLUSTER, "job": "vipscope"}, wanted)
    mesh = _Text({"cluster": CLUSTER, "job": "istio"}, wanted)
    requests = _Spread(MESH_BOUNDS)
    before = START - HOUR
    for now in moments():
        requests.add(20 * (now - before), _slow(now, nodes), 4, 60)
        before = now
        reading = _ok(_cluster(now, nodes), now)
        snapshot = Snapshot(NODE, MappingProxyType({"cluster": reading}))
        yield from text.of(_samples(snapshot, frozenset({"cluster"}), now), now)
        yield from mesh.of(_mesh(requests), now)


def _samples(snapshot: Snapshot, wanted: frozenset[str], now: float) -> Iterator[Sample]:
    """What an exporter would have answered, and that it did."""
    body = exposition.body(snapshot, wanted)
    size = sum(len(each.samples) for each in body)
    for family in (*exposition.of_the_moment(snapshot, wanted, now, size), *body):
        yield from family.samples
    if "cluster" not in wanted:
        yield Sample("up", {"job": "vipscope"}, 1.0)


class _Text:
    """Renders samples; a series is spelled once."""

    def __init__(self, scraped: Mapping[str, str], wanted: Collection[str]) -> None:
        self._scraped = scraped
        self._wanted = wanted
        self._spelled: dict[tuple[str, ...], str] = {}

    def of(self, samples: Iterable[Sample], now: int) -> Iterator[str]:
        for sample in samples:
            key = (sample.name, *sample.labels.values())
            spelled = self._spelled.get(key)
            if spelled is None:
                spelled = self._spelled[key] = self._spell(sample)
            if spelled:
                yield f"{spelled} {float(sample.value)!r} {now}\n"

    def _spell(self, sample: Sample) -> str:
        if sample.name not in self._wanted:
            return ""
        labels = {**self._scraped, **sample.labels}
        pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
        return f"{sample.name}{{{pairs}}}"


# --- how things go --------------------------------------------------------------------------------


def _share(now: float) -> float:
    """Of the day that has passed."""
    return (now - START) / DAY


def _wave(now: float, seed: int, minutes: float = 17) -> float:
    """Something that moves, from 0 to 1."""
    return (1 + math.sin(now / minutes / MINUTE + seed * 2.4)) / 2


def _services(now: float) -> int:
    return 2000 + int(1500 * _share(now))


def _slow(now: float, seed: int) -> float:
    """Share of requests that take long: with the rules, the storm, and by chance."""
    storm = 0.012 * max(0.0, (now - STORM) / (END - STORM))
    return 0.004 + 0.008 * _share(now) + 0.004 * _wave(now, seed, 7) + storm


class _Spread:
    """A histogram that fills: most requests are fast, some slow."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0.0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, many: float, slow: float, fast_at: float = 0.001, slow_at: float = 0.04) -> None:
        for at, share in ((fast_at, 1 - slow), (slow_at, slow * 0.7), (slow_at * 5, slow * 0.3)):
            place = next((i for i, bound in enumerate(self._bounds) if bound >= at), -1)
            self._counts[place] += many * share
            self._sum += many * share * at

    def histogram(self) -> Histogram:
        return Histogram(self._bounds, tuple(map(round, self._counts)), self._sum)


NODE = Node(name(0), "6.1.0-25-amd64")
KERNELS = ("6.1.0-25-amd64", "5.10.0-30-amd64", "6.12.5")


@dataclass
class _Node:
    """One node; counters grow by `passes`."""

    number: int
    connections: float = 0.0
    changed: float = 0.0
    lost: float = 0.0
    busy: float = 0.0
    through: _Spread = field(default_factory=lambda: _Spread(prober.BOUNDS))
    straight: _Spread = field(default_factory=lambda: _Spread(prober.BOUNDS))
    programmed: _Spread = field(default_factory=lambda: _Spread(latency.BOUNDS))
    heard: _Spread = field(default_factory=lambda: _Spread(latency.BOUNDS))

    @property
    def part(self) -> int:
        return self.number % GROUP

    def modes(self, now: float) -> frozenset[str]:
        """What the kernel holds."""
        if self.number % 10 == IPVS:
            return frozenset({"ipvs"})
        if self.number % 10 == 4:
            return frozenset({"nftables"})
        if self.number % 10 == LEFTOVER and now >= SWITCH:
            kept = {"iptables"} if self.part == LEFTOVER else set()
            return frozenset({"nftables", *kept})
        return frozenset({"iptables"})

    def passes(self, before: float, now: float) -> None:
        """Let time pass."""
        seconds, wave = now - before, _wave(now, self.number)
        self.connections += seconds * (20 + 30 * wave)
        storm = 40 if now > STORM else 1
        rewrite = 20_000 if before < SWITCH <= now and "nftables" in self.modes(now) else 0
        self.changed += seconds * (1 + wave) * storm + rewrite
        self.lost += seconds * 0.05 * wave
        self.busy += seconds * (0.1 + 0.3 * wave)
        slow = _slow(now, self.number) * (1 + 0.1 * (self.number % 7))
        self.through.add(10 * seconds, slow)
        self.straight.add(10 * seconds, slow / 2)
        self.programmed.add(seconds * storm / 10, 0.1, 0.4, 1.5 * storm**0.5)
        self.heard.add(seconds * storm / 10, 0.1, 0.2, 0.5 * storm**0.5)

    def snapshot(self, now: float) -> Snapshot:
        """What its exporter holds."""
        modes = self.modes(now)
        records: dict[str, Record] = {
            "nftables": self._rules(now, modes),
            "conntrack": self._conntrack(now),
            "pressure": self._pressure(now),
            "kubeproxy": self._kube_proxy(now),
            "drift": self._drift(now, modes),
            "probe": self._probes(now),
        }
        if "ipvs" in modes:
            records["ipvs"] = self._ipvs(now)
        readings = {
            each: _ok(records[each], now, 0.001 * self.changed)
            if each in records
            else Reading(Outcome.ABSENT, "", 0.001)
            for each in NODE_ROLE
        }
        if self.part == FAILING:
            readings["conntrack"] = Reading(Outcome.FAILED, "", 0.001, 1.0, START)
        kernel = KERNELS[self.number % len(KERNELS)]
        return Snapshot(Node(name(self.number), kernel), MappingProxyType(readings))

    def _rules(self, now: float, modes: frozenset[str]) -> Ruleset:
        counts = {("ipv4", "filter", "kubelet", ""): Count(2, 1)}
        counts["ipv4", "nat", "calico", ""] = Count(120, 20)
        services = _services(now) + self.number
        depths: dict[str, tuple[int, ...]] = {}
        if "iptables" in modes:
            for kind, each in (("services", 1), ("service", 5), ("endpoint", 4), ("masquerade", 0)):
                count = Count(each * services + 4, services + 1)
                counts["ipv4", "nat", "kube-proxy", kind] = count
            depths["ipv4"] = tuple(services * tenth // 10 for tenth in range(1, 11))
        if "nftables" in modes:
            for kind in ("services", "service", "endpoint"):
                counts["ip", "kube-proxy", "kube-proxy", kind] = Count(services, services)
            if "iptables" not in modes:
                depths["ipv4"] = (6, 6, 7)
        follow = Follow(
            transactions={
                "iptables-nft-re": int(self.changed / 8),
                "calico-node": int(self.connections / 500),
            },
            changes={("rule", "add"): int(self.changed), ("rule", "delete"): int(self.changed / 2)},
            resyncs={"start": 1, "overrun": int(self.changed / 5000), "interrupted": 0,
                     "periodic": int((now - START) / HOUR)},
            last_change=now - 5,
        )  # fmt: skip
        age = 1 + 10 * _wave(now, self.number)
        return Ruleset("nft", counts, {}, depths, now - age, 7, follow)

    def _conntrack(self, now: float) -> Conntrack:
        full = 0.9 if self.number % 25 == 5 else 0.3
        entries = int(262_144 * full * (0.9 + 0.1 * _wave(now, self.number)))
        statistics = {each: int(self.lost * (1 + place)) for place, each in enumerate(m.CONNTRACK)}
        return Conntrack(entries, 262_144, 65_536, statistics)

    def _pressure(self, now: float) -> Pressure:
        held = int(_wave(now, self.number, 3) > 0.6)
        return Pressure(int(self.lost * 3), int(self.lost), int(self.lost * 2), self.busy, held, 0)

    def _kube_proxy(self, now: float) -> KubeProxy:
        pending = 40 * _wave(now, self.number, 5) if now > STORM else 0.5 * _wave(now, self.number)
        rules = float(10 * _services(now))
        failures = float(int(self.lost / 100))
        intended = {("ipv4", "nat"): rules, ("ipv4", "filter"): 11.0}
        return KubeProxy(True, None, pending, now - pending, failures, intended)

    def _drift(self, now: float, modes: frozenset[str]) -> Drift:
        drifts = self.part == DRIFTING and now >= DRIFT_BEGINS
        age = now - DRIFT_BEGINS + 60 if drifts else 0.0
        wrong = Disagreement(
            "stale_endpoints", NAMESPACE, SERVICE, "http", "", age, ("10.1.2.3:80",)
        )
        faults = {"output": 300.0} if self.part == CUT_OFF else {}
        counted = "iptables" in modes
        spread = (self.programmed.histogram(), self.heard.histogram())
        since_change, since_event = spread if "ipvs" not in modes else (None, None)
        services = {
            (NAMESPACE, SERVICE, "http"): int(self.connections * 0.6),
            (NAMESPACE, "search", "grpc"): int(self.connections * 0.3),
            ("", "", ""): int(self.connections * 0.1),
        }
        uneven = {(NAMESPACE, SERVICE, "http"): 1 + _wave(now, self.number)}
        return Drift(
            mode=min(modes), backend="nft", zone=f"zone-{self.number % 3}", faults=faults,
            services={"missing": int(drifts), "orphaned": 0},
            endpoints={"missing": 0, "stale": int(3 * age / HOUR) + int(drifts)},
            oldest=age, named=(wrong,) if drifts else (), unroutable=(),
            unroutable_services={"no_local_endpoints": 0, "not_programmed": int(drifts)},
            undecided=False, new_connections=services if counted else None,
            imbalance=uneven if counted else None, same_zone_ratio=0.4,
            since_change=since_change, since_event=since_event, watches=_watches(now),
        )  # fmt: skip

    def _probes(self, now: float) -> Probes:
        walked = 25e-9 * _services(now) * _wave(now, self.number)
        handshakes = {
            ("tcp", "vip"): (0.0004 + walked,) * 12,
            ("tcp", "direct"): (0.0003,) * 12,
        }
        return Probes(
            durations={("tcp", "vip"): self.through.histogram(),
                       ("tcp", "direct"): self.straight.histogram()},
            failures={("tcp", "vip", "timeout"): int(self.lost / 50)},
            handshakes=handshakes,
            loopback={"ipv4": (3e-5 + 2 * walked,) * 12, "ipv6": (3e-5,) * 12},
        )  # fmt: skip

    def _ipvs(self, now: float) -> Ipvs:
        servers = _services(now)
        total = int(self.connections)
        return Ipvs(
            virtual_servers={("ipv4", "tcp", "rr"): servers},
            empty_virtual_servers={("ipv4", "tcp"): 3},
            real_servers={("ipv4", "tcp", "active"): 4 * servers, ("ipv4", "tcp", "drained"): 9},
            active_connections=900, inactive_connections=4000, connections=total,
            packets={"in": total * 20, "out": total * 20},
            bytes={"in": total * 9000, "out": total * 30_000},
            sysctls={"conn_reuse_mode": 1, "expire_nodest_conn": 1, "run_estimation": 1},
            services=servers, counted_at=now - 3, unbound_addresses={"ipv4": 0},
        )  # fmt: skip


def _watches(now: float) -> Mapping[str, Watch]:
    restarts = {"closed": int((now - START) / 400), "expired": 0}
    quiet = 20 + 20 * _wave(now, 1)
    return {
        "services": Watch(restarts, now - quiet, _services(now)),
        "endpointslices": Watch(restarts, now - quiet / 2, 2 * _services(now)),
    }


def _cluster(now: float, nodes: int) -> Cluster:
    passed, storm = now - START, max(0.0, now - STORM)
    changes = int(0.5 * passed + 80 * storm)
    services, endpoints = _services(now), 20 * nodes
    return Cluster(
        services={"ClusterIP": services, "NodePort": 30, "LoadBalancer": 12, "Headless": 40},
        session_affinity=7,
        traffic_policies={("internal", "Cluster"): services, ("external", "Local"): 9},
        topology={"PreferClose": 11},
        slices={"IPv4": 2 * services},
        slice_endpoints=Histogram((1, 10, 50, 100), (900, 1200, services, 40, 0), 9e4),
        endpoints={"ready": endpoints, "not_ready": 40, "serving": endpoints + 8, "terminating": 8},
        slice_events={"added": changes // 50, "modified": changes, "deleted": changes // 60},
        slice_event_bytes=changes * 12_000,
        endpoint_changes={"added": changes, "removed": changes, "ready": changes, "unready": 50,
                          "terminating": changes},
        service_changes={(NAMESPACE, SERVICE): int(2.5 * changes), (NAMESPACE, "search"): changes,
                         ("", ""): changes},
        unroutable={(NAMESPACE, "checkout", "http", "pods_not_ready"): "Pod checkout-1"},
        unroutable_services={"pods_not_ready": 1, "no_endpoint_slices": 0},
        watches=_watches(now),
    )  # fmt: skip


def _ok(record: Record, now: float, cpu: float = 1.0) -> Reading:
    return Reading(Outcome.OK, "", 0.02, cpu, now - 2, record)


MESH_BOUNDS = (0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000)
"""Milliseconds."""


def _mesh(requests: _Spread) -> Iterator[Sample]:
    labels = {
        "reporter": "source", "source_workload": "front", "source_workload_namespace": NAMESPACE,
        "destination_service_name": SERVICE, "destination_service_namespace": NAMESPACE,
    }  # fmt: skip
    histogram, total = requests.histogram(), 0
    for bound, count in zip((*MESH_BOUNDS, math.inf), histogram.counts, strict=True):
        total += count
        le = "+Inf" if bound == math.inf else f"{bound:g}"
        yield Sample("istio_request_duration_milliseconds_bucket", {**labels, "le": le}, total)
