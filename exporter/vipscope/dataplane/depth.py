"""How many rules a new connection's first packet is checked against before its Service's own match.

The packet is one that a pod sends to a Service: it enters at the prerouting hook and passes the
base chains there in order of priority, until a rule of KUBE-SERVICES (mode iptables) or the lookup
in `service-ips` (mode nftables) takes it. Jumps that every such packet follows are followed, so
another owner's chain ahead of kube-proxy's counts with all its rules; a jump under a condition of
its own (an address, an interface) counts as the one rule that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from vipscope.dataplane.naming import service_of
from vipscope.snapshot import Rule, Ruleset, Verdict

SERVICES_CHAIN = "KUBE-SERVICES"
SERVICES_MAP = "service-ips"
MOST_RULES = 2_000_000
"""Where the walk gives up: chains that fan out into each other can be walked for ever."""

Chain = tuple[str, str]
"""(table, chain)."""


def depths_by_family(rulesets: Sequence[Ruleset]) -> Mapping[str, tuple[int, ...]]:
    """Depths of the Services by address family; none of a family of which they are not known.

    Where both backends have Services, one holds leftovers, and which of them a packet meets first
    is not known.
    """
    by_family = {
        family: [ruleset.depths[family] for ruleset in rulesets if family in ruleset.depths]
        for family in sorted({family for ruleset in rulesets for family in ruleset.depths})
    }
    return {family: found[0] if len(found) == 1 else () for family, found in by_family.items()}


def nearest_rank(ascending: Sequence[int], quantile: float) -> int:
    """The smallest value that at least `quantile` of all values do not exceed."""
    return ascending[max(0, math.ceil(quantile * len(ascending)) - 1)]


class _TakenError(Exception):
    """The walk is over: the packet was taken by its Service, or by a rule that spares it none."""


def service_depths(
    base_chains: Iterable[Chain],
    rules: Callable[[Chain], Iterable[Rule]],
    map_size: Callable[[str, str], int],
) -> tuple[int, ...]:
    """Depth of each Service port, ascending; empty when no packet reaches a Service.

    `base_chains` are those of one family's prerouting hook in order of priority, `rules` gives a
    chain's rules in order, `map_size` the elements of a named map (table, name).
    """
    walk = _Walk(rules, map_size)
    try:
        for chain in base_chains:
            walk.enter(chain, ())
    except _TakenError:
        pass
    return tuple(walk.depths)


class _Walk:
    def __init__(
        self,
        rules: Callable[[Chain], Iterable[Rule]],
        map_size: Callable[[str, str], int],
    ) -> None:
        self._rules = rules
        self._map_size = map_size
        self._checked = 0
        self.depths: list[int] = []

    def enter(self, chain: Chain, above: tuple[Chain, ...]) -> bool:
        """Walk a chain. True: go on in the caller; False: the hook is over for this packet."""
        table, name = chain
        if chain in above:
            raise ValueError(f"chain {name} of table {table} jumps to itself")
        services: set[str] = set()
        for rule in self._rules(chain):
            self._note_services(chain, rule, services)
            self._checked += 1
            if self._checked > MOST_RULES:
                self.depths.clear()
                raise _TakenError
            if rule.always and rule.target:
                if not self.enter((table, rule.target), (*above, chain)):
                    return False
                if rule.goto:
                    return True
            elif rule.always and rule.verdict:
                return self._ends(rule.verdict)
        if self.depths:
            raise _TakenError
        return True

    def _note_services(self, chain: Chain, rule: Rule, services: set[str]) -> None:
        """Note the depth of each Service port that this rule is the first to match."""
        table, name = chain
        if name == SERVICES_CHAIN:
            service = service_of(rule.target)
            if service is not None and service not in services:
                services.add(service)
                self.depths.append(self._checked)
        if rule.lookup == SERVICES_MAP:
            self.depths += [self._checked] * self._map_size(table, rule.lookup)

    @staticmethod
    def _ends(verdict: Verdict) -> bool:
        """What `enter` answers after a verdict that every first packet meets."""
        if verdict == "drop":
            raise _TakenError
        return verdict == "return"
