"""New connections by Service and by backend, as the packet counters of mode iptables' rules tell.

Only the first packet of a connection passes the table nat. kube-proxy writes its chains anew
without counters, so what a rule has counted between the last read and that is not known: the sums
are what was seen, and no more than there was. In mode nftables rules have no counters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from vipscope.dataplane.desired import Family
from vipscope.dataplane.programmed import Destination, ProxyRule

K = TypeVar("K", bound=Hashable)

WAYS_IN: Final = ("KUBE-SERVICES", "KUBE-NODEPORTS")
"""Chains of table nat with a rule for each destination of a Service."""
_ENDPOINT: Final = "KUBE-SEP-"
ENOUGH: Final = 100
"""Connections of a Service below which chance alone makes its backends unequal."""
LEAST_SECONDS: Final = 10.0
"""Between reads of the counters."""
SHARE: Final = 0.001
"""Of one core that these reads may take."""

Chain = tuple[Family, str]
"""A chain of table nat."""


class CountedRule(NamedTuple):
    """A rule with its packet counter."""

    rule: ProxyRule
    handle: int
    """Its number in nf_tables; 0 in iptables-legacy, which has none."""
    packets: int


class Traffic:
    """What a kernel's reader has counted and the comparison has not taken yet."""

    def __init__(self) -> None:
        self.watched: frozenset[Chain] = frozenset()
        """Chains of Services of which the comparison wants to know the backends."""
        self._last: dict[Chain, Mapping[Any, tuple[int, int]]] = {}
        """Chain -> what a rule is for -> its handle and packets at the last read."""
        self._connections: Counter[tuple[Family, Destination]] = Counter()
        self._backends: dict[Chain, Counter[str]] = {}

    def read_ways_in(self, chain: Chain, rules: Iterable[CountedRule]) -> None:
        """Take a chain of `WAYS_IN`."""
        ways: dict[Destination, tuple[int, int]] = {}
        for rule, handle, packets in rules:
            if rule.port and rule.address is not None and _leads_on(rule):
                ways[rule.address, rule.protocol, rule.port] = handle, packets
        for destination, packets in self._grown(chain, ways).items():
            if packets:
                self._connections[chain[0], destination] += packets

    def read_backends(self, chain: Chain, rules: Iterable[CountedRule]) -> None:
        """Take a Service's chain. Where its backends are others than before, they begin anew."""
        jumps = {
            (each.rule.target, each.rule.recalled): (each.handle, each.packets)
            for each in rules
            if each.rule.target.startswith(_ENDPOINT)
        }
        known = {target for target, _ in self._last.get(chain, ())}
        grown = self._grown(chain, jumps)
        counts = self._backends.setdefault(chain, Counter())
        if known != {target for target, _ in jumps}:
            counts.clear()
            grown = dict.fromkeys(grown, 0)  # not all of it is of a time when all were there
        for (target, _), packets in grown.items():
            counts[target] += packets

    def take(
        self,
    ) -> tuple[Mapping[tuple[Family, Destination], int], Mapping[Chain, Mapping[str, int]]]:
        """New connections by destination, and of watched chains by backend, since the last time."""
        taken = self._connections, self._backends
        self._connections, self._backends = Counter(), {}
        for gone in {chain for chain in self._last if chain[1] not in WAYS_IN} - self.watched:
            del self._last[gone]
        return taken

    def _grown(self, chain: Chain, now: dict[K, tuple[int, int]]) -> dict[K, int]:
        """By how much each counter grew. The first read of a chain tells nothing of when."""
        before = self._last.get(chain)
        self._last[chain] = now
        if before is None:
            return dict.fromkeys(now, 0)
        return {key: _since(before.get(key), counter) for key, counter in now.items()}


def _since(before: tuple[int, int] | None, now: tuple[int, int]) -> int:
    """Packets since the last read; all of them when the rule is another one, or was reset."""
    (handle, packets), (old_handle, old_packets) = now, before or (0, 0)
    return packets - old_packets if handle == old_handle and packets >= old_packets else packets


def _leads_on(rule: ProxyRule) -> bool:
    """Whether it leads to a Service's chain, and does not only mark the packet."""
    return rule.target.startswith(("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-"))


def imbalance(backends: Mapping[str, int]) -> float | None:
    """The busiest backend's connections over the mean; None where there are too few to tell."""
    total = sum(backends.values())
    if total < ENOUGH:
        return None
    return max(backends.values()) * len(backends) / total
