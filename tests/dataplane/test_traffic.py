"""New connections from packet counters: over resets, by Service port, and how even they are."""

from __future__ import annotations

from typing import cast

from vipscope.dataplane.comparison import Comparison
from vipscope.dataplane.desired import Family, PortKey
from vipscope.dataplane.programmed import Destination, ProxyRule
from vipscope.dataplane.service_traffic import ServiceTraffic
from vipscope.dataplane.traffic import ENOUGH, Chain, CountedRule, Traffic, imbalance

SERVICES: Chain = ("ipv4", "KUBE-SERVICES")
CHAIN: Chain = ("ipv4", "KUBE-SVC-A")


def way(address: str, packets: int, handle: int = 1, target: str = "KUBE-SVC-A") -> CountedRule:
    return CountedRule(ProxyRule(address, "tcp", 80, target), handle, packets)


def jump(target: str, packets: int, *, recalled: bool = False) -> CountedRule:
    return CountedRule(ProxyRule(target=target, recalled=recalled), 1, packets)


def connections(*reads: list[CountedRule]) -> list[int]:
    """What the reads after the first one tell of 10.0.0.1."""
    traffic, found = Traffic(), []
    for rules in reads:
        traffic.read_ways_in(SERVICES, rules)
        counted, _ = traffic.take()
        found.append(counted.get(("ipv4", ("10.0.0.1", "tcp", 80)), 0))
    return found


def test_the_first_read_tells_nothing_and_later_ones_what_came_since() -> None:
    assert connections([way("10.0.0.1", 7)], [way("10.0.0.1", 9)], [way("10.0.0.1", 9)]) == [
        0,
        2,
        0,
    ]


def test_a_rule_written_anew_has_counted_from_nothing() -> None:
    assert connections([way("10.0.0.1", 7)], [way("10.0.0.1", 9, handle=2)]) == [0, 9]


def test_a_counter_that_was_reset_has_counted_from_nothing() -> None:
    assert connections([way("10.0.0.1", 7)], [way("10.0.0.1", 3)]) == [0, 3]


def test_a_rule_that_comes_later_has_counted_from_nothing() -> None:
    assert connections([], [way("10.0.0.1", 4)]) == [0, 4]


def test_only_rules_that_lead_to_a_service_count() -> None:
    marks = [way("10.0.0.1", 5, target="KUBE-MARK-MASQ"), way("10.0.0.1", 5, target="REJECT")]
    assert connections([way("10.0.0.1", 0)], [way("10.0.0.1", 1), *marks]) == [0, 1]


def test_backends_are_counted_through_whichever_rule_they_are_reached() -> None:
    traffic = Traffic()
    traffic.watched = frozenset((CHAIN,))
    for packets in (0, 10):
        traffic.read_backends(
            CHAIN,
            [
                CountedRule(ProxyRule(target="KUBE-MARK-MASQ"), 1, 99 + packets),
                jump("KUBE-SEP-1", packets, recalled=True),
                jump("KUBE-SEP-1", packets),
                jump("KUBE-SEP-2", 0),
            ],
        )
    assert traffic.take()[1] == {CHAIN: {"KUBE-SEP-1": 20, "KUBE-SEP-2": 0}}


def test_a_chain_that_is_watched_no_more_begins_anew() -> None:
    traffic = Traffic()
    traffic.watched = frozenset((CHAIN,))
    traffic.read_backends(CHAIN, [jump("KUBE-SEP-1", 5)])
    traffic.watched = frozenset()
    traffic.take()
    traffic.read_backends(CHAIN, [jump("KUBE-SEP-1", 50)])
    assert traffic.take()[1] == {CHAIN: {"KUBE-SEP-1": 0}}


def test_backends_that_are_others_than_before_begin_anew() -> None:
    traffic, found = Traffic(), []
    traffic.watched = frozenset((CHAIN,))
    for packets in ({"1": 0, "2": 0}, {"1": 9, "2": 9}, {"1": 19, "3": 5}, {"1": 20, "3": 6}):
        traffic.read_backends(CHAIN, [jump(f"KUBE-SEP-{name}", n) for name, n in packets.items()])
        found.append(traffic.take()[1][CHAIN])
    assert found == [
        {"KUBE-SEP-1": 0, "KUBE-SEP-2": 0},
        {"KUBE-SEP-1": 9, "KUBE-SEP-2": 9},
        {"KUBE-SEP-1": 0, "KUBE-SEP-3": 0},
        {"KUBE-SEP-1": 1, "KUBE-SEP-3": 1},
    ]


class Reached:
    """A comparison in which all is one Service port's, that has one chain."""

    def owner(self, family: Family, _: Destination) -> PortKey:
        return PortKey("ns", "web", "http", "tcp", family)

    def chains(self, _: PortKey) -> tuple[str, ...]:
        return (CHAIN[1],)


def test_after_a_rollout_the_backends_that_are_gone_do_not_make_the_others_unequal() -> None:
    traffic, told = Traffic(), ServiceTraffic(5)
    comparison = cast(Comparison, Reached())

    def imbalance_after(**packets: int) -> float | None:
        traffic.read_ways_in(SERVICES, [way("10.0.0.1", sum(packets.values()))])
        traffic.read_backends(CHAIN, [jump(f"KUBE-SEP-{name}", n) for name, n in packets.items()])
        told.take(comparison, traffic)
        return told.imbalance.get(("ns", "web", "http"))

    for packets in range(3):  # until they are watched
        assert imbalance_after(a=packets, b=packets) is None
    assert imbalance_after(a=1000, b=1000) == 1.0
    assert imbalance_after(c=0, d=0) is None
    assert imbalance_after(c=ENOUGH, d=ENOUGH) == 1.0


def test_imbalance_is_the_busiest_over_the_mean_and_unknown_of_a_few_connections() -> None:
    assert imbalance({"a": 3 * ENOUGH, "b": ENOUGH, "c": 2 * ENOUGH}) == 1.5
    assert imbalance({"a": ENOUGH, "b": 0}) == 2.0
    assert imbalance({"a": ENOUGH - 1}) is None
    assert imbalance({}) is None
