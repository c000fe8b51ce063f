"""What kube-proxy 1.36 writes into the kernel, at any size, as text for the tools that load it.

The rules have the form in which the tools print them back, so what is loaded can be compared with
what is saved line by line. Everything is deterministic: the same arguments give the same text.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tests.lab.namespace import Family

LARGE_CLUSTER_ENDPOINTS = 1000
"""Above so many endpoints kube-proxy writes endpoint rules without comments, and chains that went
stale stay for a while."""

NODE_NAME = "node2"
"""The node whose kube-proxy writes: its own endpoints are the ones in `hairpin-connections`."""

SERVICE_RANGE = "10.96.0.0/12"
POD_RANGE = "10.64.0.0/10"
"""Of IPv4."""

Chains = dict[str, Sequence[str]]
"""Rules by chain, without the leading `-A CHAIN`."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One backend of a Service."""

    address: str
    port: int
    node: str
    """Name of the node that its pod runs on."""

    def __str__(self) -> str:
        return _host_port(self.address, self.port)


@dataclass(frozen=True, slots=True)
class Service:
    """One port of a Service of type ClusterIP, with its ready endpoints."""

    namespace: str
    name: str
    port_name: str
    """May be empty, as the API allows when a Service has one port."""
    protocol: str
    """`tcp`, `udp` or `sctp`: lower case, as kube-proxy writes it."""
    cluster_ip: str
    port: int
    endpoints: tuple[Endpoint, ...]

    def __str__(self) -> str:
        """The name that kube-proxy gives it in comments, and hashes for its chains."""
        name = f"{self.namespace}/{self.name}"
        return f"{name}:{self.port_name}" if self.port_name else name

    @property
    def chain(self) -> str:
        """The name of its KUBE-SVC chain."""
        return f"KUBE-SVC-{_hash(f'{self}{self.protocol}')}"

    def endpoint_chain(self, endpoint: Endpoint) -> str:
        """The name of an endpoint's KUBE-SEP chain."""
        return f"KUBE-SEP-{_hash(f'{self}{self.protocol}{endpoint}')}"

    @property
    def nft_chain(self) -> str:
        """The name of its chain in mode nftables."""
        name = f"{self.namespace}/{self.name}/{self.protocol}/{self.port_name}"
        return f"service-{_hash(name, 8)}-{name}"

    def without(self, endpoint: Endpoint) -> Service:
        """The same Service after an endpoint went away."""
        return replace(self, endpoints=tuple(e for e in self.endpoints if e != endpoint))


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What differs between the address families."""

    service_range: str
    pod_range: str
    first_cluster_ip: str
    first_pod_ip: str
    host_bits: int
    reject_with: str
    not_loopback: str
    """The match in front of the jump to KUBE-NODEPORTS."""
    nft: str
    """The family's name in nft, and its header's in a rule."""


_DIALECTS: Mapping[Family, _Dialect] = {
    "ipv4": _Dialect(
        service_range=SERVICE_RANGE,
        pod_range=POD_RANGE,
        first_cluster_ip="10.96.1.0",
        first_pod_ip="10.64.0.0",
        host_bits=32,
        reject_with="icmp-port-unreachable",
        not_loopback="",
        nft="ip",
    ),
    "ipv6": _Dialect(
        service_range="fd00:10:96::/112",
        pod_range="fd00:10:64::/48",
        first_cluster_ip="fd00:10:96::100",
        first_pod_ip="fd00:10:64::",
        host_bits=128,
        reject_with="icmp6-port-unreachable",
        not_loopback="! -d ::1/128 ",
        nft="ip6",
    ),
}


def cluster(services: int, endpoints: int, *, family: Family = "ipv4") -> tuple[Service, ...]:
    """So many Services `ns-(i mod 10)/svc-i` of so many endpoints each, spread over three nodes."""
    dialect = _DIALECTS[family]
    first_cluster_ip = ipaddress.ip_address(dialect.first_cluster_ip)
    first_pod_ip = ipaddress.ip_address(dialect.first_pod_ip)
    return tuple(
        Service(
            namespace=f"ns-{i % 10}",
            name=f"svc-{i}",
            port_name="http",
            protocol="tcp",
            cluster_ip=str(first_cluster_ip + i),
            port=80,
            endpoints=tuple(
                Endpoint(str(first_pod_ip + pod), 8080, f"node{1 + pod % 3}")
                for pod in range(i * endpoints, (i + 1) * endpoints)
            ),
        )
        for i in range(services)
    )


def iptables(
    services: Sequence[Service],
    *,
    family: Family = "ipv4",
    seed: int | None = 0,
    large: bool | None = None,
) -> str:
    """The whole of mode iptables for `iptables-restore`; `seed` decides the order of the Services,
    None leaves them in theirs.

    `large` is whether kube-proxy takes the cluster for a large one, in which endpoint rules have no
    comments; None: as it does by the number of endpoints.
    Base chains are not declared, only filled: so the backend nft holds just those that kube-proxy's
    jumps brought about, as on a node.
    """
    nat = _nat_top(services, family, seed) | {"KUBE-PROXY-CANARY": ()}
    large = _is_large(services) if large is None else large
    nat |= _nat_of_services(_shuffled(services, seed), family, large)
    made_once: Chains = {"KUBE-FIREWALL": (), "KUBE-PROXY-CANARY": ()}
    return "".join(
        (
            _restore_table("mangle", {"KUBE-PROXY-CANARY": ()}),
            _restore_table("filter", made_once | _filter(services, family, seed), _FILTER_JUMPS),
            _restore_table("nat", nat, _NAT_JUMPS),
        )
    )


def iptables_flip(
    services: Sequence[Service],
    *changed: Service,
    family: Family = "ipv4",
    seed: int | None = 1,
) -> str:
    """A partial sync for `iptables-restore --noflush`, after endpoints of some Services changed.

    `services` is the state before, `changed` what the Services of the same names have become. The
    chains that all Services share are rewritten whole and in a new order, as the iteration over a
    Go map gives it; those of the changed Services too. With the backend nft this is one transaction
    for each of the two tables.
    """
    before, after = _change(services, changed)
    large = _is_large(after)
    rewritten = _nat_of_services(changed, family, large)
    stale = _nat_of_services(before, family, large).keys() - rewritten.keys()
    return _restore_table("filter", _filter(after, family, seed)) + _restore_table(
        "nat",
        _nat_top(after, family, seed) | rewritten,
        # In a large cluster stale chains stay until a later clean-up.
        deleted=() if large else sorted(stale),
    )


def nftables(services: Sequence[Service], *, family: Family = "ipv4") -> str:
    """The whole of mode nftables, one address family's table, for `nft -f`."""
    ip = _DIALECTS[family].nft
    lines = [f"table {ip} kube-proxy {{", '\tcomment "rules for kube-proxy"']
    for kind, name, key, comment, elements in _nft_sets(services, family):
        lines += [f"\t{kind} {name} {{", f"\t\ttype {key}", f'\t\tcomment "{comment}"']
        if elements:
            lines.append(f"\t\telements = {{ {', '.join(elements)} }}")
        lines.append("\t}")
    chains = _nft_base_chains(family) | {
        service.nft_chain: (f"{_nft_match(service)} dnat {ip} to {_nft_backends(service)}",)
        for service in services
        if service.endpoints
    }
    for name, rules in chains.items():
        lines += [f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}"]
    return "\n".join([*lines, "}", ""])


def nftables_flip(services: Sequence[Service], changed: Service, *, family: Family = "ipv4") -> str:
    """The transaction for `nft -f` after one Service's endpoints changed; arguments as above.

    The one rule of the Service's chain is replaced together with its anonymous map. When the last
    endpoint goes, the chain stays behind empty: kube-proxy deletes it in a later transaction.
    """
    (before,), _ = _change(services, [changed])
    ip = _DIALECTS[family].nft
    chain = f"{ip} kube-proxy {changed.nft_chain}"
    lines = []
    if changed.endpoints:
        lines.append(f"add chain {chain}")
    lines.append(f"flush chain {chain}")
    if changed.endpoints:
        backends = _nft_backends(changed)
        lines.append(f"add rule {chain} {_nft_match(changed)} dnat {ip} addr . port to {backends}")
    old_sets = _nft_sets([before], family)
    new_sets = _nft_sets([changed], family)
    for (_, name, _, _, old), (_, _, _, _, new) in zip(old_sets, new_sets, strict=True):
        where = f"element {ip} kube-proxy {name}"
        lines += [f"add {where} {{ {element} }}" for element in new if element not in old]
        lines += [f"delete {where} {{ {element} }}" for element in old if element not in new]
    return "\n".join([*lines, ""])


def ipvs(services: Sequence[Service]) -> str:
    """The virtual and real servers of mode ipvs for `ipvsadm -R`."""
    lines = []
    for service in services:
        option = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}[service.protocol]
        server = f"{option} {_host_port(service.cluster_ip, service.port)}"
        lines.append(f"-A {server} -s rr")
        lines += [f"-a {server} -r {endpoint} -m -w 1" for endpoint in service.endpoints]
    return "\n".join([*lines, ""])


def ipvs_addresses(services: Sequence[Service], *, family: Family = "ipv4") -> str:
    """Input for `ip -batch -` that gives kube-ipvs0 the cluster IPs. The device must exist."""
    bits = _DIALECTS[family].host_bits
    addresses = dict.fromkeys(service.cluster_ip for service in services)
    return "".join(f"address add {address}/{bits} dev kube-ipvs0\n" for address in addresses)


# --- mode iptables -------------------------------------------------------------------------------

_FILTER_JUMPS: Chains = {
    "INPUT": (
        "-j KUBE-FIREWALL",
        (
            '-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall"'
            " -j KUBE-PROXY-FIREWALL"
        ),
        '-m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
        (
            "-m conntrack --ctstate NEW"
            ' -m comment --comment "kubernetes externally-visible service portals"'
            " -j KUBE-EXTERNAL-SERVICES"
        ),
    ),
    "FORWARD": (
        (
            '-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall"'
            " -j KUBE-PROXY-FIREWALL"
        ),
        '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
        (
            '-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals"'
            " -j KUBE-SERVICES"
        ),
        (
            "-m conntrack --ctstate NEW"
            ' -m comment --comment "kubernetes externally-visible service portals"'
            " -j KUBE-EXTERNAL-SERVICES"
        ),
    ),
    "OUTPUT": (
        "-j KUBE-FIREWALL",
        (
            '-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall"'
            " -j KUBE-PROXY-FIREWALL"
        ),
        (
            '-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals"'
            " -j KUBE-SERVICES"
        ),
    ),
}
_NAT_JUMPS: Chains = {
    "PREROUTING": ('-m comment --comment "kubernetes service portals" -j KUBE-SERVICES',),
    "OUTPUT": ('-m comment --comment "kubernetes service portals" -j KUBE-SERVICES',),
    "POSTROUTING": ('-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',),
}


def _filter(services: Sequence[Service], family: Family, seed: int | None) -> Chains:
    """The chains of table filter that every sync writes."""
    dialect = _DIALECTS[family]
    chains: Chains = {
        "KUBE-EXTERNAL-SERVICES": (),
        "KUBE-FORWARD": (
            # Two blanks: so iptables-save prints this match.
            (
                "-m conntrack --ctstate INVALID"
                " -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts -j DROP"
            ),
            (
                '-m comment --comment "kubernetes forwarding rules"'
                " -m mark --mark 0x4000/0x4000 -j ACCEPT"
            ),
            (
                '-m comment --comment "kubernetes forwarding conntrack rule"'
                " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
            ),
        ),
        "KUBE-NODEPORTS": (),
        "KUBE-PROXY-FIREWALL": (),
        "KUBE-SERVICES": [
            f"{_destination(service, dialect, 'has no endpoints')}"
            f" -j REJECT --reject-with {dialect.reject_with}"
            for service in _shuffled(services, seed)
            if not service.endpoints
        ],
    }
    if family == "ipv4":  # route_localnet, which this guards, is a thing of IPv4
        chains["KUBE-FIREWALL"] = (
            (
                "! -s 127.0.0.0/8 -d 127.0.0.0/8"
                ' -m comment --comment "block incoming localnet connections"'
                " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
            ),
        )
    return chains


def _nat_top(services: Sequence[Service], family: Family, seed: int | None) -> Chains:
    """The chains of table nat that every sync writes."""
    dialect = _DIALECTS[family]
    return {
        "KUBE-MARK-MASQ": ("-j MARK --set-xmark 0x4000/0x4000",),
        "KUBE-NODEPORTS": (),
        "KUBE-POSTROUTING": (
            "-m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-j MARK --set-xmark 0x4000/0x0",
            (
                '-m comment --comment "kubernetes service traffic requiring SNAT"'
                " -j MASQUERADE --random-fully"
            ),
        ),
        "KUBE-SERVICES": [
            *(
                f"{_destination(service, dialect, 'cluster IP')} -j {service.chain}"
                for service in _shuffled(services, seed)
                if service.endpoints
            ),
            (
                f"{dialect.not_loopback}-m comment"
                ' --comment "kubernetes service nodeports; NOTE: this must be the last rule in this'
                ' chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS'
            ),
        ],
    }


def _nat_of_services(services: Sequence[Service], family: Family, large: bool) -> Chains:
    chains: Chains = {}
    for service in services:
        chains |= _nat_of_service(service, family, large)
    return chains


def _nat_of_service(service: Service, family: Family, large: bool) -> Chains:
    """The chains that belong to one Service: its own and those of its endpoints."""
    if not service.endpoints:
        return {}
    dialect = _DIALECTS[family]
    endpoints = sorted(service.endpoints, key=str)
    balancing = [
        f"! -s {dialect.pod_range} {_destination(service, dialect, 'cluster IP')} -j KUBE-MARK-MASQ"
    ]
    chains: Chains = {service.chain: balancing}
    for remaining, endpoint in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
        chain = service.endpoint_chain(endpoint)
        balancing.append(
            ("" if large else f'-m comment --comment "{service} -> {endpoint}" ')
            + (f"-m statistic --mode random --probability {_share(remaining)} " * (remaining > 1))
            + f"-j {chain}"
        )
        comment = "" if large else f' -m comment --comment "{service}"'
        chains[chain] = (
            f"-s {endpoint.address}/{dialect.host_bits}{comment} -j KUBE-MARK-MASQ",
            (
                f"-p {service.protocol}{comment} -m {service.protocol}"
                f" -j DNAT --to-destination {endpoint}"
            ),
        )
    return chains


def _destination(service: Service, dialect: _Dialect, comment: str) -> str:
    """The match on a Service's cluster IP and port."""
    return (
        f"-d {service.cluster_ip}/{dialect.host_bits} -p {service.protocol}"
        f' -m comment --comment "{service} {comment}"'
        f" -m {service.protocol} --dport {service.port}"
    )


def _share(remaining: int) -> str:
    """The probability 1/remaining as iptables-save prints it.

    kube-proxy writes ten digits, the kernel keeps 31 bits of them.
    """
    written = float(f"{1 / remaining:.10f}")
    return f"{round(written * 2**31) / 2**31:.11f}"


def _restore_table(
    name: str, chains: Chains, base_chains: Chains | None = None, deleted: Sequence[str] = ()
) -> str:
    """One table in the format of iptables-restore.

    A line for a chain makes or empties it: those in `deleted` need it before they can go.
    """
    lines = [f"*{name}"]
    lines += [f":{chain} - [0:0]" for chain in (*chains, *deleted)]
    for chain, rules in ((base_chains or {}) | chains).items():
        lines += [f"-A {chain} {rule}" for rule in rules]
    lines += [f"-X {chain}" for chain in deleted]
    return "\n".join([*lines, "COMMIT", ""])


# --- mode nftables -------------------------------------------------------------------------------


def _nft_base_chains(family: Family) -> Chains:
    """The chains that do not depend on the Services."""
    dialect = _DIALECTS[family]
    ip = dialect.nft
    # kube-proxy knows node addresses of its primary family only, here IPv4; for the other family
    # it asks the routing table.
    if family == "ipv4":
        refused_on = served_on = "ip daddr @nodeport-ips"
    else:
        refused_on, served_on = "ip6 daddr != ::1", "fib daddr type local ip6 daddr != ::1"
    service_port = f"{ip} daddr . meta l4proto . th dport"
    check_endpoints = "ct state new jump service-endpoints-check"
    check_cluster_ips = "ct state new jump cluster-ips-check"
    return {
        "filter-prerouting-pre-dnat": (
            "type filter hook prerouting priority dstnat - 10; policy accept;",
            "ct state new jump firewall-check",
        ),
        "filter-output-pre-dnat": (
            "type filter hook output priority -110; policy accept;",
            "ct state new jump firewall-check",
        ),
        "filter-input": (
            "type filter hook input priority filter; policy accept;",
            "ct state new jump nodeport-endpoints-check",
            check_endpoints,
        ),
        "filter-forward": (
            "type filter hook forward priority filter; policy accept;",
            check_endpoints,
            check_cluster_ips,
        ),
        "filter-output": (
            "type filter hook output priority filter; policy accept;",
            check_endpoints,
            check_cluster_ips,
        ),
        "nat-prerouting": (
            "type nat hook prerouting priority dstnat; policy accept;",
            "jump services",
        ),
        "nat-output": ("type nat hook output priority -100; policy accept;", "jump services"),
        "nat-postrouting": (
            "type nat hook postrouting priority srcnat; policy accept;",
            "jump masquerading",
        ),
        "nodeport-endpoints-check": (
            f"{refused_on} meta l4proto . th dport vmap @no-endpoint-nodeports",
        ),
        "service-endpoints-check": (f"{service_port} vmap @no-endpoint-services",),
        "firewall-check": (f"{service_port} vmap @firewall-ips",),
        "services": (
            (
                f"{ip} daddr @cluster-ips {ip} saddr != {dialect.pod_range}"
                " meta mark set meta mark | 0x00004000"
                ' comment "masquerade clusterIP traffic from outside cluster"'
            ),
            f"{service_port} vmap @service-ips",
            f"{served_on} meta l4proto . th dport vmap @service-nodeports",
        ),
        "masquerading": (
            (
                "meta mark & 0x00004000 != 0x00000000 meta mark set meta mark ^ 0x00004000"
                " masquerade fully-random"
            ),
            (
                f"ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport"
                " @hairpin-connections masquerade fully-random"
            ),
        ),
        "cluster-ips-check": (
            (
                f'{ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of'
                ' ClusterIPs"'
            ),
            (
                f"{ip} daddr {dialect.service_range} drop"
                ' comment "Drop traffic to unallocated ClusterIPs"'
            ),
        ),
        "reject-chain": (
            'comment "helper for @no-endpoint-services / @no-endpoint-nodeports"',
            "reject",
        ),
    }


def _nft_sets(
    services: Sequence[Service], family: Family
) -> list[tuple[str, str, str, str, list[str]]]:
    """The named sets and maps: set or map, name, type, comment, elements."""
    address = f"{family}_addr"
    port = "inet_proto . inet_service"
    hairpins = {
        f"{e.address} . {e.address} . {service.protocol} . {e.port}": None
        for service in services
        for e in service.endpoints
        if e.node == NODE_NAME
    }
    cluster_ips = dict.fromkeys(service.cluster_ip for service in services)
    refused = [
        f'{_nft_key(s)} comment "{s}" : goto reject-chain' for s in services if not s.endpoints
    ]
    routed = [f"{_nft_key(s)} : goto {s.nft_chain}" for s in services if s.endpoints]
    sets = [
        (
            "set",
            "hairpin-connections",
            f"{address} . {address} . {port}",
            "service hairpin connections",
            list(hairpins),
        ),
        ("set", "cluster-ips", address, "Active ClusterIPs", list(cluster_ips)),
        (
            "map",
            "no-endpoint-services",
            f"{address} . {port} : verdict",
            "vmap to drop or reject packets to services with no endpoints",
            refused,
        ),
        (
            "map",
            "no-endpoint-nodeports",
            f"{port} : verdict",
            "vmap to drop or reject packets to service nodeports with no endpoints",
            [],
        ),
        (
            "map",
            "firewall-ips",
            f"{address} . {port} : verdict",
            "destinations that are subject to LoadBalancerSourceRanges",
            [],
        ),
        (
            "map",
            "service-ips",
            f"{address} . {port} : verdict",
            "ClusterIP, ExternalIP and LoadBalancer IP traffic",
            routed,
        ),
        ("map", "service-nodeports", f"{port} : verdict", "NodePort traffic", []),
    ]
    if family == "ipv4":
        node_ips = ("set", "nodeport-ips", address, "IPs that accept NodePort traffic")
        sets.insert(2, (*node_ips, ["192.168.77.12"]))
    return sets


def _nft_key(service: Service) -> str:
    return f"{service.cluster_ip} . {service.protocol} . {service.port}"


def _nft_match(service: Service) -> str:
    return f"meta l4proto {service.protocol}"


def _nft_backends(service: Service) -> str:
    endpoints = sorted(service.endpoints, key=str)
    elements = ", ".join(f"{n} : {e.address} . {e.port}" for n, e in enumerate(endpoints))
    return f"numgen random mod {len(endpoints)} map {{ {elements} }}"


# --- common --------------------------------------------------------------------------------------


def _hash(text: str, length: int = 16) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:length]


def _host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _is_large(services: Sequence[Service]) -> bool:
    return sum(len(service.endpoints) for service in services) > LARGE_CLUSTER_ENDPOINTS


def _shuffled(services: Sequence[Service], seed: int | None) -> Sequence[Service]:
    return services if seed is None else random.Random(seed).sample(services, len(services))


def _change(
    services: Sequence[Service], changed: Sequence[Service]
) -> tuple[list[Service], list[Service]]:
    """The changed Services' earlier states, and all Services afterwards."""
    now = {(str(each), each.protocol): each for each in changed}
    before = [each for each in services if (str(each), each.protocol) in now]
    return before, [now.get((str(each), each.protocol), each) for each in services]
