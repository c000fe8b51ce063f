"""The walk of a first packet, on rules written out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from vipscope.dataplane.depth import nearest_rank, service_depths
from vipscope.snapshot import Rule

SERVICES = (Rule(target="KUBE-SVC-A"), Rule(target="KUBE-SVC-B"))
JUMP = Rule(target="KUBE-SERVICES", always=True)


def depths(
    chains: Mapping[str, Sequence[Rule]],
    base: Sequence[str] = ("PREROUTING",),
    maps: Mapping[str, int] | None = None,
) -> list[int]:
    found = service_depths(
        [("nat", chain) for chain in base],
        lambda chain: chains[chain[1]],
        lambda _, name: (maps or {})[name],
    )
    return list(found)


def test_each_rule_before_a_services_own_counts() -> None:
    assert depths({"PREROUTING": [Rule(), JUMP], "KUBE-SERVICES": SERVICES}) == [2, 3]


def test_a_service_with_several_addresses_counts_once_at_its_first() -> None:
    rules = (Rule(target="KUBE-SVC-A"), Rule(target="KUBE-EXT-A"), Rule(target="KUBE-SVC-B"))
    assert depths({"PREROUTING": [JUMP], "KUBE-SERVICES": rules}) == [1, 3]


def test_a_conditional_jump_is_one_rule() -> None:
    chains = {
        "PREROUTING": [Rule(target="OTHER"), JUMP],
        "OTHER": [Rule()] * 9,
        "KUBE-SERVICES": SERVICES,
    }
    assert depths(chains) == [2, 3]


def test_an_unconditional_jump_is_followed_and_comes_back() -> None:
    chains = {
        "PREROUTING": [Rule(target="OTHER", always=True), JUMP],
        "OTHER": [Rule(), Rule(verdict="return", always=True), Rule()],
        "KUBE-SERVICES": SERVICES,
    }
    assert depths(chains) == [4, 5]


def test_a_goto_does_not_come_back() -> None:
    chains = {
        "PREROUTING": [Rule(target="OTHER", goto=True, always=True), JUMP],
        "OTHER": [Rule()],
        "KUBE-SERVICES": SERVICES,
    }
    assert depths(chains) == []


def test_an_accept_ends_its_base_chain_only() -> None:
    chains = {
        "raw": [Rule(verdict="accept", always=True), Rule()],
        "PREROUTING": [JUMP],
        "KUBE-SERVICES": SERVICES,
    }
    assert depths(chains, ("raw", "PREROUTING")) == [2, 3]


def test_a_drop_ends_everything() -> None:
    chains = {
        "raw": [Rule(verdict="drop", always=True)],
        "PREROUTING": [JUMP],
        "KUBE-SERVICES": SERVICES,
    }
    assert depths(chains, ("raw", "PREROUTING")) == []


def test_a_map_gives_all_its_services_one_depth() -> None:
    chains = {"PREROUTING": [Rule(), Rule(lookup="service-ips"), Rule()]}
    assert depths(chains, maps={"service-ips": 3}) == [1, 1, 1]


def test_chains_that_fan_out_without_end_give_nothing_rather_than_a_guess() -> None:
    chains: dict[str, Sequence[Rule]] = {
        f"C{n}": [Rule(target=f"C{n + 1}", always=True)] * 10 for n in range(9)
    }
    chains |= {"C9": [Rule()], "PREROUTING": [Rule(target="C0", always=True), JUMP]}
    assert depths(chains | {"KUBE-SERVICES": SERVICES}) == []


@pytest.mark.parametrize(
    ("quantile", "value"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)]
)
def test_a_quantile_is_a_value_that_is_there(quantile: float, value: int) -> None:
    assert nearest_rank((1, 2, 3, 4), quantile) == value
