"""What the exporter expects is exactly what a real kube-proxy has written: nothing more or less."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from tests.dataplane import captured
from tests.dataplane.captured import PLACES, Programmed
from tests.lab import rulesets
from vipscope.dataplane import expected
from vipscope.dataplane.desired import DesiredPort, Family, PortKey
from vipscope.dataplane.expected import Entry, Expected


def agree(wanted: Iterable[Expected], held: Programmed) -> None:
    wanted = list(wanted)
    backends = {chain: ends for each in wanted for chain, ends in each.backends.items()}
    endpoint_chains = {chain: end for each in wanted for end, chain in each.endpoint_chains.items()}
    chains = {chain for each in wanted for chain in each.chains}
    assert {tuple(entry) for each in wanted for entry in each.entries} == held.ways
    assert chains | endpoint_chains.keys() == held.chains
    assert {chain: ends for chain, ends in backends.items() if ends} == {
        chain: ends for chain, ends in held.backends.items() if ends
    }
    assert endpoint_chains == held.endpoint_chains
    assert chains >= backends.keys() or not chains


@pytest.mark.parametrize(
    ("cluster", "capture", "family"),
    [
        (captured.small, "iptables/small.v4.save", "ipv4"),
        (captured.small, "iptables/small.v6.save", "ipv6"),
        (captured.medium, "iptables/medium.v4.save.gz", "ipv4"),
    ],
)
def test_iptables_agrees_with_what_kube_proxy_wrote_on_node1(
    cluster: captured.Source, capture: str, family: Family
) -> None:
    ports = cluster().desired(PLACES["node1"], family)
    agree(map(expected.iptables, ports), captured.iptables(captured.read(capture)))


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("cluster", "capture"),
    [
        (captured.small, "nftables/small.nft"),
        (captured.medium, "nftables/medium.nft.gz"),
    ],
)
def test_nftables_agrees_with_what_kube_proxy_wrote_on_node2(
    cluster: captured.Source, capture: str, family: Family
) -> None:
    ports = cluster().desired(PLACES["node2"], family)
    held = captured.nftables(captured.read(capture), {"ipv4": "ip", "ipv6": "ip6"}[family])
    agree(map(expected.nftables, ports), held)


def test_ipvs_agrees_with_what_kube_proxy_wrote_on_node3() -> None:
    ports = captured.small().desired(PLACES["node3"])
    held = captured.ipvs(captured.read("ipvs/ipvs.save"))
    agree(
        (expected.ipvs(port, ["192.168.77.13", "192.168.79.13"]) for port in ports),
        held,
    )


def test_the_captures_hold_something() -> None:
    for held in (
        captured.iptables(captured.read("iptables/small.v4.save")),
        captured.nftables(captured.read("nftables/small.nft"), "ip"),
        captured.ipvs(captured.read("ipvs/ipvs.save")),
    ):
        assert len(held.ways) > 40
        assert len([ends for ends in held.backends.values() if ends]) > 30


# --- what no capture has -------------------------------------------------------------------------


KEY = PortKey("shop", "web", "http", "tcp", "ipv4")


def desired(
    *,
    external_ips: tuple[str, ...] = (),
    load_balancer_ips: tuple[str, ...] = (),
    source_ranges: tuple[str, ...] = (),
    node_port: int = 0,
    internal_local: bool = False,
    external_local: bool = False,
    cluster: tuple[str, ...] = ("10.64.0.1:8080", "10.64.0.2:8080"),
    local: tuple[str, ...] = (),
    anywhere: bool = True,
    affinity_seconds: int = 0,
    key: PortKey = KEY,
    cluster_ip: str = "10.96.0.10",
) -> DesiredPort:
    return DesiredPort(
        key=key,
        cluster_ip=cluster_ip,
        port=80,
        node_port=node_port,
        external_ips=external_ips,
        load_balancer_ips=load_balancer_ips,
        source_ranges=source_ranges,
        internal_local=internal_local,
        external_local=external_local,
        affinity_seconds=affinity_seconds,
        cluster=cluster,
        local=local,
        anywhere=anywhere,
        topology="",
        in_own_zone=0,
    )


def places(entries: Iterable[Entry]) -> set[tuple[str, str, int, str]]:
    """Entries without the hash in a chain's name."""
    return {
        (
            entry.place,
            entry.address,
            entry.port,
            re.sub(r"-[A-Z2-7]{8}([A-Z2-7]{8}$|-.*)", "", entry.target),
        )
        for entry in entries
    }


def test_iptables_sends_every_outside_address_to_the_external_chain() -> None:
    program = expected.iptables(
        desired(external_ips=("192.0.2.1",), load_balancer_ips=("192.0.2.2",), node_port=30080)
    )
    assert places(program.entries) == {
        ("nat/KUBE-SERVICES", "10.96.0.10", 80, "KUBE-SVC"),
        ("nat/KUBE-SERVICES", "192.0.2.1", 80, "KUBE-EXT"),
        ("nat/KUBE-SERVICES", "192.0.2.2", 80, "KUBE-EXT"),
        ("nat/KUBE-NODEPORTS", "", 30080, "KUBE-EXT"),
    }
    assert {chain[:8] for chain in program.chains} == {"KUBE-SVC", "KUBE-EXT"}


def test_iptables_source_ranges_put_a_firewall_chain_before_the_external_one() -> None:
    program = expected.iptables(
        desired(load_balancer_ips=("192.0.2.2",), source_ranges=("198.51.100.0/24",))
    )
    assert places(program.entries) == {
        ("nat/KUBE-SERVICES", "10.96.0.10", 80, "KUBE-SVC"),
        ("nat/KUBE-SERVICES", "192.0.2.2", 80, "KUBE-FW"),
        ("filter/KUBE-PROXY-FIREWALL", "192.0.2.2", 80, "DROP"),
    }
    assert {chain[:8] for chain in program.chains} == {"KUBE-SVC", "KUBE-EXT", "KUBE-FW-"}


def test_iptables_without_any_endpoint_rejects_and_has_no_chain() -> None:
    program = expected.iptables(
        desired(
            external_ips=("192.0.2.1",),
            load_balancer_ips=("192.0.2.2",),
            source_ranges=("198.51.100.0/24",),
            node_port=30080,
            cluster=(),
            anywhere=False,
        )
    )
    assert places(program.entries) == {
        ("filter/KUBE-SERVICES", "10.96.0.10", 80, "REJECT"),
        ("filter/KUBE-EXTERNAL-SERVICES", "192.0.2.1", 80, "REJECT"),
        ("filter/KUBE-EXTERNAL-SERVICES", "192.0.2.2", 80, "REJECT"),
        ("filter/KUBE-EXTERNAL-SERVICES", "", 30080, "REJECT"),
    }
    assert program.chains == frozenset()
    assert program.endpoints == frozenset()


def test_iptables_external_local_without_local_endpoint_short_circuits_and_drops_the_rest() -> None:
    program = expected.iptables(desired(external_ips=("192.0.2.1",), external_local=True))
    assert places(program.entries) == {
        ("nat/KUBE-SERVICES", "10.96.0.10", 80, "KUBE-SVC"),
        ("nat/KUBE-SERVICES", "192.0.2.1", 80, "KUBE-EXT"),
        ("filter/KUBE-EXTERNAL-SERVICES", "192.0.2.1", 80, "DROP"),
    }


def test_iptables_internal_local_goes_to_the_local_chain() -> None:
    program = expected.iptables(desired(internal_local=True, cluster=(), local=("10.64.0.1:8080",)))
    assert places(program.entries) == {("nat/KUBE-SERVICES", "10.96.0.10", 80, "KUBE-SVL")}
    assert list(program.backends.values()) == [frozenset({"10.64.0.1:8080"})]


def test_a_port_without_a_name_is_hashed_without_a_colon() -> None:
    key = PortKey("shop", "web", "", "tcp", "ipv4")
    service = rulesets.Service("shop", "web", "", "tcp", "10.96.0.10", 80, ())
    assert expected.iptables(desired(key=key)).chains == {service.chain}
    assert expected.nftables(desired(key=key)).chains == {service.nft_chain}


def test_nftables_checks_source_ranges_even_without_endpoints() -> None:
    program = expected.nftables(
        desired(
            load_balancer_ips=("192.0.2.2",),
            source_ranges=("198.51.100.0/24",),
            cluster=(),
            anywhere=False,
        )
    )
    assert places(program.entries) == {
        ("cluster-ips", "10.96.0.10", 0, ""),
        ("no-endpoint-services", "10.96.0.10", 80, "reject-chain"),
        ("no-endpoint-services", "192.0.2.2", 80, "reject-chain"),
        ("firewall-ips", "192.0.2.2", 80, "firewall"),
    }
    assert [chain.split("-")[0] for chain in program.chains] == ["firewall"]


def test_nftables_drops_what_has_no_local_endpoint() -> None:
    program = expected.nftables(desired(node_port=30080, internal_local=True, external_local=True))
    assert places(program.entries) == {
        ("cluster-ips", "10.96.0.10", 0, ""),
        ("no-endpoint-services", "10.96.0.10", 80, "drop"),
        ("service-nodeports", "", 30080, "external"),
        ("no-endpoint-nodeports", "", 30080, "drop"),
    }


def test_nftables_endpoint_chains_are_for_session_affinity_and_have_no_colons() -> None:
    key = PortKey("shop", "web", "http", "tcp", "ipv6")
    one = "[fd00:10:64::1]:8080"
    assert not expected.nftables(desired(key=key, cluster=(one,))).endpoint_chains
    sticky = expected.nftables(desired(key=key, cluster=(one,), affinity_seconds=10800))
    (chain,) = sticky.endpoint_chains.values()
    assert chain.endswith("-shop/web/tcp/http__fd00.10.64..1/8080")


def test_nftables_cuts_a_long_endpoint_chain_name() -> None:
    key = PortKey("n" * 63, "s" * 63, "p" * 63, "sctp", "ipv6")
    one = "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535"
    program = expected.nftables(desired(key=key, cluster=(one,), affinity_seconds=1))
    (chain,) = program.endpoint_chains.values()
    assert len(chain.removeprefix("endpoint-")) == 240
    assert chain.endswith("...")


def test_ipvs_falls_back_to_all_endpoints_where_the_local_policy_finds_none() -> None:
    port = desired(external_ips=("192.0.2.1",), internal_local=True, external_local=True)
    program = expected.ipvs(port, [])
    assert set(program.backends.values()) == {frozenset(port.cluster)}
    assert program.backends.keys() == {"10.96.0.10:80/tcp", "192.0.2.1:80/tcp"}


def test_ipvs_splits_local_and_cluster_traffic_by_virtual_server() -> None:
    port = desired(node_port=30080, external_local=True, local=("10.64.0.1:8080",))
    assert expected.ipvs(port, ["192.168.0.1", "192.168.0.2"]).backends == {
        "10.96.0.10:80/tcp": frozenset(port.cluster),
        "192.168.0.1:30080/tcp": frozenset(port.local),
        "192.168.0.2:30080/tcp": frozenset(port.local),
    }


def test_ipvs_keeps_a_virtual_server_without_endpoints() -> None:
    key = PortKey("shop", "web", "http", "tcp", "ipv6")
    program = expected.ipvs(
        desired(key=key, cluster_ip="fd00:10:96::1", cluster=(), anywhere=False), []
    )
    assert program.backends == {"[fd00:10:96::1]:80/tcp": frozenset()}
    (entry,) = program.entries
    assert entry.address == "fd00:10:96::1"


def test_names_agree_with_the_laboratory_for_many_services() -> None:
    for service in rulesets.cluster(50, 3):
        port = desired(
            key=PortKey(service.namespace, service.name, service.port_name, "tcp", "ipv4"),
            cluster_ip=service.cluster_ip,
            cluster=tuple(str(endpoint) for endpoint in service.endpoints),
        )
        program = expected.iptables(port)
        assert program.chains == {service.chain}
        assert program.endpoint_chains == {
            str(endpoint): service.endpoint_chain(endpoint) for endpoint in service.endpoints
        }
        assert expected.nftables(port).chains == {service.nft_chain}
