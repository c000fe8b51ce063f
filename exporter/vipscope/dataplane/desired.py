"""Which Service ports and endpoints kube-proxy programs on one node.

A pure function of a Service, its EndpointSlices and the node's place, so one changed object costs
only its own Service. The rules are those of kube-proxy 1.36: package pkg/proxy of kubernetes,
serviceport.go for the Service, endpointslicecache.go for the join with the slices, topology.go
(CategorizeEndpoints) for the choice of endpoints. kube-proxy keeps the address families apart, and
so do these records. Health check node ports are left out.

Endpoints are written as kube-proxy writes and hashes them: `10.0.0.1:8080`, `[fd00::1]:8080`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, Literal, NamedTuple

from vipscope.cluster import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    HintName,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)

PROXY_NAME_LABEL: Final = "service.kubernetes.io/service-proxy-name"
"""On Services and slices that another proxy than kube-proxy serves."""
HEADLESS_LABEL: Final = "service.kubernetes.io/headless"
"""Put by the controllers on the slices of headless Services."""
SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
"""On a slice: the Service that it belongs to."""

Family = Literal["ipv4", "ipv6"]
FAMILIES: Final[Mapping[Family, str]] = {"ipv4": "IPv4", "ipv6": "IPv6"}
"""Family -> its name in the API."""

Answer = Literal["forward", "reject", "drop"]
"""forward: there are endpoints to send it to. reject: no endpoint in the whole cluster is usable.
drop: there are usable endpoints, but none on this node, and the policy is Local."""

Topology = Literal["", "node", "zone"]
"""What kube-proxy follows: no hints, the hints for this node, or those for this node's zone."""


class Place(NamedTuple):
    """Where kube-proxy runs: the node's name in the API, its label topology.kubernetes.io/zone."""

    node: str
    zone: str = ""


class PortKey(NamedTuple):
    """A Service port of one family. Its text is the name that kube-proxy writes and hashes."""

    namespace: str
    service: str
    port: str
    """The port's name; may be empty where a Service has one port."""
    protocol: str
    """tcp, udp or sctp."""
    family: Family

    def __str__(self) -> str:
        name = f"{self.namespace}/{self.service}"
        return f"{name}:{self.port}" if self.port else name


class Candidate(NamedTuple):
    """An endpoint of a Service port before any is chosen."""

    address: str
    ready: bool
    serving: bool
    terminating: bool
    local: bool
    """Whether it is on this node."""
    zone: str
    node_hints: tuple[str, ...]
    zone_hints: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether it takes traffic at least when no endpoint is ready."""
        return self.ready or (self.serving and self.terminating)


class Choice(NamedTuple):
    """Which of a Service port's endpoints a node uses; endpoints in kube-proxy's order."""

    cluster: tuple[str, ...]
    """For policy Cluster; empty also where the Service has no such traffic."""
    local: tuple[str, ...]
    """For policy Local, on this node; empty also where the Service has no such traffic."""
    anywhere: bool
    """Whether any node of the cluster has a usable endpoint."""
    topology: Topology


class Exclusion(enum.StrEnum):
    """Why an endpoint gets no traffic from this node."""

    NOT_READY = "not ready"
    TERMINATING = "terminating"
    NOT_LOCAL = "not local"
    OTHER_NODE = "hinted for other nodes"
    OTHER_ZONE = "hinted for other zones"


@dataclass(frozen=True, slots=True)
class DesiredPort:
    """What one node's kube-proxy programs for a Service port of one family."""

    key: PortKey
    cluster_ip: str
    port: int
    """The port of all its addresses but the node's own."""
    node_port: int
    """0: none."""
    external_ips: tuple[str, ...]
    load_balancer_ips: tuple[str, ...]
    """Those in mode VIP: what is sent to a load balancer in mode Proxy must reach it."""
    source_ranges: tuple[str, ...]
    """Whom the load balancer addresses accept; empty: everybody."""
    internal_local: bool
    """Whether internalTrafficPolicy is Local."""
    external_local: bool
    """Whether externalTrafficPolicy is Local and there can be external traffic."""
    affinity_seconds: int
    """Session affinity by client address for so long; 0: none."""
    cluster: tuple[str, ...]
    """As in `Choice`; the next three too."""
    local: tuple[str, ...]
    anywhere: bool
    topology: Topology
    in_own_zone: int
    """How many of the reachable endpoints are in this node's zone."""

    @property
    def external(self) -> bool:
        """Whether it has any address beside its cluster IP."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def reachable(self) -> tuple[str, ...]:
        """All endpoints that any of its traffic can reach from this node."""
        return _union(self.cluster, self.local)

    @property
    def internal_answer(self) -> Answer:
        """What happens to traffic for the cluster IP."""
        return self._answer(self.internal_local)

    @property
    def external_answer(self) -> Answer:
        """What happens to traffic from outside for all other addresses.

        Even when dropped, the node's own and its pods' traffic for them goes to `cluster`.
        """
        return self._answer(self.external_local)

    def _answer(self, local: bool) -> Answer:
        if not self.anywhere:
            return "reject"
        return "drop" if local and not self.local else "forward"


def is_watched(metadata: ObjectMeta) -> bool:
    """Whether kube-proxy gets to see a Service or slice: it watches both with one selector."""
    labels = metadata.labels
    return not labels or (PROXY_NAME_LABEL not in labels and HEADLESS_LABEL not in labels)


def service_of_slice(piece: EndpointSlice) -> tuple[str, str] | None:
    """(namespace, name) of the Service that a slice belongs to; None when it names none."""
    name = (piece.metadata.labels or {}).get(SERVICE_NAME_LABEL)
    return (piece.metadata.namespace, name) if name else None


def is_proxied(service: Service) -> bool:
    """Whether kube-proxy programs a Service: not headless, not ExternalName, with a cluster IP."""
    spec = service.spec
    return (
        is_watched(service.metadata)
        and spec.type != "ExternalName"
        and spec.cluster_ip not in ("", "None")
    )


def desired_ports(
    service: Service, slices: Iterable[EndpointSlice], place: Place
) -> tuple[DesiredPort, ...]:
    """One record for each port and family of a Service; none when kube-proxy leaves it alone.

    `slices` are all those whose `service_of_slice` is this Service, in any order.
    """
    if not is_proxied(service):
        return ()
    watched = _watched(slices)
    return tuple(
        _desired_port(service, port, family, cluster_ip, watched, place)
        for family in FAMILIES
        if (cluster_ip := _cluster_ip(service.spec, family))
        for port in service.spec.ports
    )


def candidates(slices: Iterable[EndpointSlice], key: PortKey, place: Place) -> list[Candidate]:
    """A Service port's endpoints in all slices of the Service, in kube-proxy's order.

    When an address is in several slices, the last one that is not terminating counts: another pod
    may have got the address of one that ends. Among those that remain kube-proxy takes any; here it
    is the one of the slice whose name comes last.
    """
    return _candidates(_watched(slices), key, place)


def choose(
    endpoints: Sequence[Candidate], place: Place, *, uses_cluster: bool, uses_local: bool
) -> Choice:
    """The endpoints that a node sends traffic to: kube-proxy's CategorizeEndpoints.

    Ready ones, for policy Cluster those that the topology hints leave; if there are none, those
    that still serve while they terminate. Cluster and Local fall back independently.
    """
    ready = [endpoint for endpoint in endpoints if endpoint.ready]
    leaving = (
        [e for e in endpoints if e.serving and e.terminating] if uses_local or not ready else []
    )
    topology: Topology = ""
    cluster: Sequence[Candidate] = ()
    local: Sequence[Candidate] = ()
    if uses_cluster:
        topology = _topology(ready, place)
        cluster = [e for e in ready if _is_hinted(e, topology, place)] or leaving
    if uses_local:
        local = [e for e in ready if e.local] or [e for e in leaving if e.local]
    return Choice(
        tuple([endpoint.address for endpoint in cluster]),
        tuple([endpoint.address for endpoint in local]),
        bool(ready or leaving),
        topology,
    )


def exclusions(
    port: DesiredPort, endpoints: Iterable[Candidate], *, local: bool
) -> dict[str, Exclusion | None]:
    """Why policy Local or Cluster does not use each of a port's `candidates`; None: it is used."""
    used = frozenset(port.local if local else port.cluster)
    return {
        endpoint.address: (
            None if endpoint.address in used else _exclusion(endpoint, port.topology, local=local)
        )
        for endpoint in endpoints
    }


def _desired_port(
    service: Service,
    port: ServicePort,
    family: Family,
    cluster_ip: str,
    slices: Sequence[EndpointSlice],
    place: Place,
) -> DesiredPort:
    metadata, spec = service.metadata, service.spec
    key = PortKey(metadata.namespace, metadata.name, port.name, port.protocol.lower(), family)
    external_ips = _of_family(spec.external_ips, family)
    load_balancer_ips = _of_family(
        [one.ip for one in service.status.load_balancer.ingress if one.ip and one.ip_mode == "VIP"],
        family,
    )
    internal_local = spec.internal_traffic_policy == "Local"
    external_local = spec.external_traffic_policy == "Local" and (
        spec.type in ("LoadBalancer", "NodePort") or bool(spec.external_ips)
    )
    external = bool(port.node_port or external_ips or load_balancer_ips)
    endpoints = _candidates(slices, key, place)
    choice = choose(
        endpoints,
        place,
        # Even for a Local external policy: traffic from this node and its pods is not bound by it.
        uses_cluster=not internal_local or external,
        uses_local=internal_local or (external_local and external),
    )
    return DesiredPort(
        key=key,
        cluster_ip=_canonical(cluster_ip),
        port=port.port,
        node_port=port.node_port,
        external_ips=external_ips,
        load_balancer_ips=load_balancer_ips,
        source_ranges=tuple(
            [text.strip() for text in spec.load_balancer_source_ranges if _is_of(text, family)]
        ),
        internal_local=internal_local,
        external_local=external_local,
        affinity_seconds=_affinity_seconds(spec),
        cluster=choice.cluster,
        local=choice.local,
        anywhere=choice.anywhere,
        topology=choice.topology,
        in_own_zone=_in_own_zone(endpoints, choice, place),
    )


def _candidates(slices: Iterable[EndpointSlice], key: PortKey, place: Place) -> list[Candidate]:
    found: dict[str, Candidate] = {}
    for piece in slices:
        if piece.address_type != FAMILIES[key.family]:
            continue
        for port in piece.ports or ():
            if port.port and _is_port(port, key):
                for endpoint in piece.endpoints or ():
                    if endpoint.addresses:
                        candidate = _candidate(endpoint, port.port, place)
                        if not candidate.terminating or candidate.address not in found:
                            found[candidate.address] = candidate
    return [found[address] for address in sorted(found)]


def _candidate(endpoint: Endpoint, port: int, place: Place) -> Candidate:
    address = endpoint.addresses[0]
    conditions, hints = endpoint.conditions, endpoint.hints
    return Candidate(
        f"[{_canonical(address)}]:{port}" if ":" in address else f"{_canonical(address)}:{port}",
        conditions.ready is not False,
        conditions.serving is not False,
        conditions.terminating is True,
        bool(place.node) and endpoint.node_name == place.node,
        endpoint.zone or "",
        _names(hints.for_nodes) if hints else (),
        _names(hints.for_zones) if hints else (),
    )


def _is_port(port: EndpointPort, key: PortKey) -> bool:
    """A slice's port without a name is not even that of a Service's port without a name."""
    return port.name == key.port and port.protocol.lower() == key.protocol


def _topology(ready: Sequence[Candidate], place: Place) -> Topology:
    """The hints that count: those that every ready endpoint has and one has for this place."""
    node_hints = [endpoint.node_hints for endpoint in ready]
    if all(node_hints) and any(place.node in names for names in node_hints):
        return "node"
    zone_hints = [endpoint.zone_hints for endpoint in ready]
    if all(zone_hints) and any(place.zone in names for names in zone_hints):
        return "zone"
    return ""


def _is_hinted(endpoint: Candidate, topology: Topology, place: Place) -> bool:
    match topology:
        case "node":
            return place.node in endpoint.node_hints
        case "zone":
            return place.zone in endpoint.zone_hints
        case _:
            return True


def _exclusion(endpoint: Candidate, topology: Topology, *, local: bool) -> Exclusion:
    if not endpoint.usable:
        return Exclusion.TERMINATING if endpoint.terminating else Exclusion.NOT_READY
    if local and not endpoint.local:
        return Exclusion.NOT_LOCAL
    if not endpoint.ready:
        return Exclusion.TERMINATING
    return Exclusion.OTHER_NODE if topology == "node" else Exclusion.OTHER_ZONE


def _in_own_zone(endpoints: Iterable[Candidate], choice: Choice, place: Place) -> int:
    if not place.zone:
        return 0
    reachable = {*choice.cluster, *choice.local}
    return sum(e.zone == place.zone and e.address in reachable for e in endpoints)


def _cluster_ip(spec: ServiceSpec, family: Family) -> str:
    """The cluster IP of a family; "" when the Service has none. Old objects name no families."""
    if not spec.ip_families:
        return spec.cluster_ip if _is_of(spec.cluster_ip, family) else ""
    return dict(zip(spec.ip_families, spec.cluster_ips, strict=False)).get(FAMILIES[family], "")


def _affinity_seconds(spec: ServiceSpec) -> int:
    config = spec.session_affinity_config
    if spec.session_affinity != "ClientIP" or config is None or config.client_ip is None:
        return 0
    return config.client_ip.timeout_seconds


def _watched(slices: Iterable[EndpointSlice]) -> list[EndpointSlice]:
    """By name: so the result does not depend on the order in which slices came."""
    return sorted(
        (piece for piece in slices if is_watched(piece.metadata)),
        key=lambda piece: piece.metadata.name,
    )


def _names(hints: Iterable[HintName] | None) -> tuple[str, ...]:
    return tuple([hint.name for hint in hints or ()])


def _union(some: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    if not others or some == others:
        return some
    return tuple(sorted({*some, *others}))


def _of_family(addresses: Iterable[str], family: Family) -> tuple[str, ...]:
    return tuple([_canonical(text) for text in addresses if _is_of(text, family)])


def _is_of(address: str, family: Family) -> bool:
    return (":" in address) == (family == "ipv6")


_LEADING_ZERO = re.compile(r"\b0+(?=\d)")


def _canonical(address: str) -> str:
    """An address as Go and the kernel's tools print it; as it is, when it is none.

    The API has let in IPv4 addresses with leading zeros, which mean decimal numbers.
    """
    if ":" not in address:
        return _LEADING_ZERO.sub("", address)
    try:
        return str(IPv6Address(address))
    except ValueError:
        return address
