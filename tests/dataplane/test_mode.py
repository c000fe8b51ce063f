"""Which of kube-proxy's modes the records show."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from vipscope.dataplane.mode import proxy_modes
from vipscope.settings import COLLECTORS
from vipscope.snapshot import Count, Ipvs, Node, Outcome, Reading, Record, Ruleset, Snapshot


def ruleset(*counts: tuple[str, str, str, int]) -> Ruleset:
    """A record with chains, each as table, owner, class and their number."""
    return Ruleset(
        backend="nft",
        counts={
            ("ipv4", table, owner, kind): Count(rules=0, chains=chains)
            for table, owner, kind, chains in counts
        },
        set_elements={},
        depths={},
        counted_at=0.0,
    )


def ipvs(virtual_servers: int) -> Ipvs:
    return Ipvs(
        virtual_servers={("ipv4", "tcp", "rr"): virtual_servers},
        empty_virtual_servers={},
        real_servers={},
        active_connections=0,
        inactive_connections=0,
        connections=0,
        packets={},
        bytes={},
        sysctls={},
        services=virtual_servers,
        counted_at=0.0,
        unbound_addresses=None,
    )


EMPTY = ruleset(("filter", "other", "", 3))
SERVICES = ruleset(("nat", "kube-proxy", "service", 2))
NATIVE = ruleset(("kube-proxy", "kube-proxy", "other", 9))
CANARY = ruleset(("nat", "kube-proxy", "other", 1), ("filter", "kube-proxy", "service", 1))
"""What kubelet makes on every node, and a chain of a Service's name where kube-proxy has none."""
GONE = ruleset(("nat", "kube-proxy", "service", 0))

Given = Mapping[str, Record | Outcome]
Modes = Mapping[str, bool]


def modes(given: Given, wanted: frozenset[str]) -> Modes:
    readings = {
        name: Reading(each) if isinstance(each, Outcome) else Reading(Outcome.OK, record=each)
        for name, each in given.items()
    }
    return proxy_modes(Snapshot(Node("n", "6"), readings), wanted)


NONE = {"iptables": False, "nftables": False, "ipvs": False, "none": True}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            {"nftables": EMPTY, "xtables": EMPTY, "ipvs": ipvs(0)}, NONE, id="nothing of kube-proxy"
        ),
        pytest.param(
            {"nftables": CANARY, "xtables": GONE, "ipvs": ipvs(0)}, NONE, id="no chain of a Service"
        ),
        pytest.param(
            {"nftables": Outcome.ABSENT, "xtables": Outcome.ABSENT, "ipvs": Outcome.ABSENT},
            NONE,
            id="a kernel without any",
        ),
        pytest.param(
            {"nftables": SERVICES, "xtables": Outcome.ABSENT, "ipvs": Outcome.ABSENT},
            {**NONE, "iptables": True, "none": False},
            id="iptables by nft",
        ),
        pytest.param(
            {"nftables": EMPTY, "xtables": SERVICES, "ipvs": ipvs(0)},
            {**NONE, "iptables": True, "none": False},
            id="iptables by legacy",
        ),
        pytest.param(
            {"nftables": NATIVE, "xtables": Outcome.ABSENT, "ipvs": Outcome.ABSENT},
            {**NONE, "nftables": True, "none": False},
            id="nftables",
        ),
        pytest.param(
            {"nftables": EMPTY, "xtables": Outcome.ABSENT, "ipvs": ipvs(7)},
            {**NONE, "ipvs": True, "none": False},
            id="ipvs",
        ),
        pytest.param(
            {"nftables": NATIVE, "xtables": SERVICES, "ipvs": ipvs(0)},
            {"iptables": True, "nftables": True, "ipvs": False, "none": False},
            id="leftovers of iptables",
        ),
        pytest.param(
            {"nftables": NATIVE, "xtables": SERVICES, "ipvs": ipvs(1)},
            {"iptables": True, "nftables": True, "ipvs": True, "none": False},
            id="leftovers of both",
        ),
        pytest.param(
            {"nftables": EMPTY, "xtables": EMPTY, "ipvs": Outcome.DENIED},
            {"iptables": False, "nftables": False},
            id="ipvs denied",
        ),
        pytest.param(
            {"nftables": EMPTY, "xtables": Outcome.FAILED, "ipvs": ipvs(0)},
            {"nftables": False, "ipvs": False},
            id="one of the two sources of iptables failed",
        ),
        pytest.param(
            {"nftables": SERVICES, "xtables": Outcome.FAILED, "ipvs": ipvs(0)},
            {**NONE, "iptables": True, "none": False},
            id="the other source shows it all the same",
        ),
        pytest.param(
            {"nftables": Outcome.TIMEOUT, "xtables": EMPTY, "ipvs": ipvs(0)},
            {"ipvs": False},
            id="nftables hung",
        ),
        pytest.param(
            {"nftables": Outcome.DISABLED, "xtables": Outcome.DISABLED, "ipvs": Outcome.DISABLED},
            {},
            id="all switched off",
        ),
        pytest.param(
            {"xtables": EMPTY, "ipvs": ipvs(0)}, {"ipvs": False}, id="a first read is due"
        ),
        pytest.param({}, {}, id="no read yet"),
    ],
)
def test_modes_that_the_records_show(given: Given, expected: Modes) -> None:
    assert modes(given, frozenset(COLLECTORS)) == expected


def test_a_mode_whose_source_was_not_asked_for_is_left_out() -> None:
    given: Given = {"nftables": EMPTY, "xtables": EMPTY, "ipvs": ipvs(3)}
    assert modes(given, frozenset({"nftables", "ipvs"})) == {
        "nftables": False,
        "ipvs": True,
        "none": False,
    }
    assert modes(given, frozenset({"conntrack"})) == {}
