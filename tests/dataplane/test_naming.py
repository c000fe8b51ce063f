"""Owners and classes by chain name."""

from __future__ import annotations

import pytest

from vipscope.dataplane.naming import (
    CLASS_PREFIX_LENGTH,
    CLASS_PREFIXES,
    chain_class,
    service_of,
    set_name,
)


@pytest.mark.parametrize(
    ("table", "chain", "expected"),
    [
        ("nat", "KUBE-SERVICES", ("kube-proxy", "services")),
        ("nat", "KUBE-SVC-ABC", ("kube-proxy", "service")),
        ("nat", "KUBE-SVL-ABC", ("kube-proxy", "service-local")),
        ("nat", "KUBE-EXT-ABC", ("kube-proxy", "external")),
        ("nat", "KUBE-FW-ABC", ("kube-proxy", "firewall")),
        ("nat", "KUBE-SEP-ABC", ("kube-proxy", "endpoint")),
        ("nat", "KUBE-NODEPORTS", ("kube-proxy", "nodeports")),
        ("nat", "KUBE-MARK-MASQ", ("kube-proxy", "masquerade")),
        ("nat", "KUBE-POSTROUTING", ("kube-proxy", "masquerade")),
        ("filter", "KUBE-FORWARD", ("kube-proxy", "filter")),
        ("filter", "KUBE-PROXY-FIREWALL", ("kube-proxy", "filter")),
        ("filter", "KUBE-PROXY-CANARY", ("kube-proxy", "other")),
        ("filter", "KUBE-FIREWALL", ("kubelet", "")),
        ("mangle", "KUBE-KUBELET-CANARY", ("kubelet", "")),
        ("filter", "KUBE-ROUTER-INPUT", ("kube-router", "")),
        ("nat", "cali-PREROUTING", ("calico", "")),
        ("nat", "CILIUM_PRE_nat", ("cilium", "")),
        ("nat", "FLANNEL-POSTRTG", ("flannel", "")),
        ("nat", "CNI-HOSTPORT-DNAT", ("cni", "")),
        ("nat", "ISTIO_OUTPUT", ("istio", "")),
        ("nat", "DOCKER", ("docker", "")),
        ("nat", "PREROUTING", ("other", "")),
        ("nat", "service-ABC", ("other", "")),
        ("kube-proxy", "services", ("kube-proxy", "services")),
        ("kube-proxy", "service-ABCDEFGH-ns/svc/tcp/http", ("kube-proxy", "service")),
        ("kube-proxy", "service-endpoints-check", ("kube-proxy", "filter")),
        ("kube-proxy", "local-ABCDEFGH-ns/svc/tcp/http", ("kube-proxy", "service-local")),
        ("kube-proxy", "external-ABCDEFGH-ns/svc/tcp/http", ("kube-proxy", "external")),
        ("kube-proxy", "endpoint-ABCDEFGH-ns/svc/tcp/http__1/2", ("kube-proxy", "endpoint")),
        ("kube-proxy", "firewall-check", ("kube-proxy", "firewall")),
        ("kube-proxy", "nodeport-endpoints-check", ("kube-proxy", "nodeports")),
        ("kube-proxy", "masquerading", ("kube-proxy", "masquerade")),
        ("kube-proxy", "filter-input", ("kube-proxy", "filter")),
        ("kube-proxy", "nat-output", ("kube-proxy", "other")),
        ("kube-proxy", "KUBE-SEP-ABC", ("kube-proxy", "other")),
    ],
)
def test_a_chain_has_the_owner_and_class_that_its_name_tells(
    table: str, chain: str, expected: tuple[str, str]
) -> None:
    assert chain_class(table, chain) == expected


def test_starts_that_tell_a_class_alone_do_so_whatever_follows() -> None:
    for start in CLASS_PREFIXES:
        assert len(start) == CLASS_PREFIX_LENGTH
        assert len({chain_class("nat", start + tail) for tail in ("", "X", "-SERVICES")}) == 1


def test_all_chains_of_a_service_port_share_a_hash() -> None:
    kinds = ("SVC", "SVL", "EXT", "FW")
    assert {service_of(f"KUBE-{kind}-ABC") for kind in kinds} == {"ABC"}
    assert service_of("KUBE-SEP-ABC") is None
    assert service_of("") is None


def test_affinity_sets_share_a_name() -> None:
    assert set_name("affinity-ABC-ns/svc/tcp/http__10.0.0.1/80") == "affinity"
    assert set_name("service-ips") == "service-ips"
