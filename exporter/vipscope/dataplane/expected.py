"""What the kernel must hold for a Service port, in each of kube-proxy's modes.

Only what tells a right program from a wrong one: the ways in (a rule, a map element or a virtual
server for each address), the chains, and the endpoints that each of them spreads over. What all
Services share, and what follows from these, is left out. Sources: package pkg/proxy of kubernetes
1.36, iptables/proxier.go, nftables/proxier.go and ipvs/proxier.go.

Chain names do not tell the address family: compare family with family.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vipscope.dataplane.desired import Answer, DesiredPort, PortKey

VIRTUAL_SERVER: Final = "virtual-server"
"""The place of all entries in mode ipvs."""

_LONGEST_NFT_BASE: Final = 240
"""nf_tables' limit for names less the room that kube-proxy keeps for a prefix."""

_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PAIRS = tuple(first + second for first in _BASE32 for second in _BASE32)
"""Two digits at a time take half as long as base64.b32encode: one hash for each endpoint."""


class Entry(NamedTuple):
    """A way in: what happens to packets for one address, protocol and port."""

    place: str
    """nat/KUBE-SERVICES, filter/KUBE-EXTERNAL-SERVICES, service-ips, virtual-server, …"""
    address: str
    """Empty for a node port in modes iptables and nftables: all of the node's addresses."""
    protocol: str
    """Empty in set cluster-ips, which holds addresses alone."""
    port: int
    target: str
    """A chain, `REJECT`, `DROP`, `reject-chain`, `drop`, or the virtual server's own name."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be there for one Service port of one family."""

    entries: frozenset[Entry]
    backends: Mapping[str, frozenset[str]]
    """Chain or virtual server -> the endpoints (`ip:port`) that it spreads connections over."""
    chains: frozenset[str] = frozenset()
    """The Service port's chains, those in `backends` included, those of endpoints not."""
    endpoint_chains: Mapping[str, str] = field(default_factory=dict)
    """Endpoint -> its own chain, where the mode gives it one."""

    @property
    def endpoints(self) -> frozenset[str]:
        """All endpoints that the Service port leads to."""
        return frozenset().union(*self.backends.values())


class _Chains(NamedTuple):
    """A Service port's chain names in one mode."""

    cluster: str
    local: str
    external: str
    firewall: str


def iptables(port: DesiredPort) -> Expected:
    """Mode iptables: tables nat and filter, whichever backend holds them."""
    hashed = f"{port.key}{port.key.protocol}"
    digest = _digest(hashed, 16)
    names = _Chains(*(f"KUBE-{kind}-{digest}" for kind in ("SVC", "SVL", "EXT", "FW")))
    has_firewall = port.anywhere and _has_firewall(port)
    entries = _ways_in(
        port,
        names,
        services="nat/KUBE-SERVICES",
        node_ports="nat/KUBE-NODEPORTS",
        refused=_Refused(
            internal="filter/KUBE-SERVICES",
            external="filter/KUBE-EXTERNAL-SERVICES",
            node_ports="filter/KUBE-EXTERNAL-SERVICES",
            targets={"reject": "REJECT", "drop": "DROP"},
        ),
        load_balancer=names.firewall if has_firewall else names.external,
    )
    drops = _load_balancer_entries(port, "filter/KUBE-PROXY-FIREWALL", "DROP")
    return Expected(
        entries=frozenset([*entries, *(drops if has_firewall else ())]),
        backends=_backends(port, names),
        chains=frozenset(_chains(port, names, has_firewall=has_firewall)),
        endpoint_chains={
            endpoint: f"KUBE-SEP-{_digest(hashed + endpoint, 16)}" for endpoint in port.reachable
        },
    )


def nftables(port: DesiredPort) -> Expected:
    """Mode nftables: table kube-proxy of families ip and ip6."""
    base = _nft_base(_nft_name(port.key))
    names = _Chains(*(f"{kind}-{base}" for kind in ("service", "local", "external", "firewall")))
    has_firewall = _has_firewall(port)
    entries = _ways_in(
        port,
        names,
        services="service-ips",
        node_ports="service-nodeports",
        refused=_Refused(
            internal="no-endpoint-services",
            external="no-endpoint-services",
            node_ports="no-endpoint-nodeports",
            targets={"reject": "reject-chain", "drop": "drop"},
        ),
        load_balancer=names.external,
    )
    checks = _load_balancer_entries(port, "firewall-ips", names.firewall) if has_firewall else ()
    cluster_ip = Entry("cluster-ips", port.cluster_ip, "", 0, "")
    return Expected(
        entries=frozenset([cluster_ip, *entries, *checks]),
        backends=_backends(port, names),
        chains=frozenset(_chains(port, names, has_firewall=has_firewall)),
        # Without session affinity an endpoint is but an element of the Service's anonymous map.
        endpoint_chains={
            endpoint: f"endpoint-{_nft_base(_nft_endpoint_name(port.key, endpoint))}"
            for endpoint in (port.reachable if port.affinity_seconds else ())
        },
    )


def ipvs(port: DesiredPort, node_addresses: Iterable[str]) -> Expected:
    """Mode ipvs. `node_addresses` are those of this family that take node ports.

    A Service without endpoints has virtual servers without real ones. With policy Local and no
    endpoint on this node IPVS gets, unlike the other modes, the endpoints of policy Cluster.
    """
    cluster, local = frozenset(port.cluster), frozenset(port.local or port.cluster)
    internal = local if port.internal_local else cluster
    external = local if port.external_local else cluster
    servers = {(port.cluster_ip, port.port): internal}
    for address in (*port.external_ips, *port.load_balancer_ips):
        servers[address, port.port] = external
    if port.node_port:
        for address in node_addresses:
            servers[address, port.node_port] = external
    entries = {
        Entry(
            VIRTUAL_SERVER,
            address,
            port.key.protocol,
            number,
            virtual_server(address, port.key.protocol, number),
        ): backends
        for (address, number), backends in servers.items()
    }
    return Expected(
        entries=frozenset(entries),
        backends={entry.target: backends for entry, backends in entries.items()},
    )


def virtual_server(address: str, protocol: str, port: int) -> str:
    """The name of a virtual server: `10.96.0.1:80/tcp`, `[fd00::1]:80/tcp`."""
    return f"[{address}]:{port}/{protocol}" if ":" in address else f"{address}:{port}/{protocol}"


class _Refused(NamedTuple):
    """Where a mode refuses traffic that has no endpoint."""

    internal: str
    external: str
    node_ports: str
    targets: Mapping[Answer, str]


def _ways_in(
    port: DesiredPort,
    names: _Chains,
    *,
    services: str,
    node_ports: str,
    refused: _Refused,
    load_balancer: str,
) -> Iterator[Entry]:
    """Entries that modes iptables and nftables have alike but for the names of their places.

    Traffic from outside that is dropped has entries in both: the external chain takes what comes
    from the node itself and its pods, and what it leaves is dropped.
    """
    protocol = port.key.protocol
    if port.internal_answer == "forward":
        chain = names.local if port.internal_local else names.cluster
        yield Entry(services, port.cluster_ip, protocol, port.port, chain)
    else:
        target = refused.targets[port.internal_answer]
        yield Entry(refused.internal, port.cluster_ip, protocol, port.port, target)
    if port.anywhere:
        for address in port.external_ips:
            yield Entry(services, address, protocol, port.port, names.external)
        yield from _load_balancer_entries(port, services, load_balancer)
        if port.node_port:
            yield Entry(node_ports, "", protocol, port.node_port, names.external)
    if port.external_answer != "forward":
        target = refused.targets[port.external_answer]
        for address in (*port.external_ips, *port.load_balancer_ips):
            yield Entry(refused.external, address, protocol, port.port, target)
        if port.node_port:
            yield Entry(refused.node_ports, "", protocol, port.node_port, target)


def _load_balancer_entries(port: DesiredPort, place: str, target: str) -> list[Entry]:
    return [
        Entry(place, address, port.key.protocol, port.port, target)
        for address in port.load_balancer_ips
    ]


def _has_firewall(port: DesiredPort) -> bool:
    return bool(port.load_balancer_ips and port.source_ranges)


def _backends(port: DesiredPort, names: _Chains) -> dict[str, frozenset[str]]:
    return {
        chain: frozenset(endpoints)
        for chain, endpoints in ((names.cluster, port.cluster), (names.local, port.local))
        if endpoints
    }


def _chains(port: DesiredPort, names: _Chains, *, has_firewall: bool) -> Iterator[str]:
    if port.cluster:
        yield names.cluster
    if port.local:
        yield names.local
    if port.anywhere and port.external:
        yield names.external
    if has_firewall:
        yield names.firewall


def _digest(text: str, length: int) -> str:
    """The start of a text's SHA-256 in base 32; `length` is even."""
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") >> (256 - 5 * length)
    return "".join([_PAIRS[bits >> shift & 1023] for shift in range(5 * length - 10, -1, -10)])


def _nft_name(key: PortKey) -> str:
    return f"{key.namespace}/{key.service}/{key.protocol}/{key.port}"


def _nft_endpoint_name(key: PortKey, endpoint: str) -> str:
    """Colons are not allowed in a chain's name."""
    address, _, number = endpoint.rpartition(":")
    return f"{_nft_name(key)}__{address.strip('[]').replace(':', '.')}/{number}"


def _nft_base(name: str) -> str:
    base = f"{_digest(name, 8)}-{name}"
    return base if len(base) <= _LONGEST_NFT_BASE else f"{base[: _LONGEST_NFT_BASE - 3]}..."
