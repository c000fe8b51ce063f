"""What a Service's path, and the rules in it, cost the first packet of a connection.

Two numbers that are made in different ways. *Measured* is what the prober's connections through
Services took longer than those straight to an endpoint. *Modelled* is what the rules alone cost a
Service of middle depth: depth times the cost of one rule, which the prober calibrates on this node.

They are not two estimates of one thing. Where rules are checked one after another, a connection
that goes straight is checked against them all before it is known that no Service takes it. So there
the measured difference shrinks as rules grow, and can be negative, while both connections take
longer.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from vipscope.dataplane.depth import nearest_rank

LEAST_HANDSHAKES = 10
"""By each path, below which their medians tell nothing."""
FEW_RULES = 500
"""Depth of the deepest Service below which rules are lost in what else a handshake costs: so many
take 2 to 40 µs, and a handshake on loopback without rules 5 to 60 µs."""


def measured(handshakes: Mapping[tuple[str, str], Sequence[float]]) -> float | None:
    """Seconds by which the way through a Service takes longer, None without enough handshakes.

    The median over probes of the difference between the medians of both paths. `handshakes` is
    (probe, path) -> seconds; path is vip or direct.
    """
    differences = [
        statistics.median(through) - statistics.median(straight)
        for (probe, path), through in handshakes.items()
        if path == "vip"
        for straight in [handshakes.get((probe, "direct"), ())]
        if min(len(through), len(straight)) >= LEAST_HANDSHAKES
    ]
    return statistics.median(differences) if differences else None


def modelled(
    depths: Mapping[str, Sequence[int]], loopback: Mapping[str, Sequence[float]]
) -> float | None:
    """Seconds that the rules ahead of a Service of median depth hold up a first packet.

    `depths` is family -> each Service port's depth, ascending: empty where it is not known, and no
    family that has no Services. `loopback` is family -> seconds of handshakes of this node with
    itself. That of IPv4, where there are Services by IPv4. None without Services, or with too few
    handshakes to tell.
    """
    family = min(depths, default="")
    ascending = depths.get(family)
    if not ascending:
        return None
    cost = _rule_cost(family, depths, loopback)
    return None if cost is None else nearest_rank(ascending, 0.5) * cost


def _rule_cost(
    family: str, depths: Mapping[str, Sequence[int]], loopback: Mapping[str, Sequence[float]]
) -> float | None:
    """Seconds for which one rule of this family holds up a first packet; arguments as above.

    A handshake on loopback is no Service's, so it is checked against the rules of all, thus against
    as many as one for the deepest is. What it takes without them tells the other family's. None
    where this family has few rules, the other one has many, or either too few handshakes.
    """
    (other,) = loopback.keys() - {family}
    if min(len(loopback[family]), len(loopback[other])) < LEAST_HANDSHAKES:
        return None
    deepest = depths[family][-1]
    deepest_of_other = max(depths.get(other, (0,)), default=FEW_RULES)
    if deepest < FEW_RULES or deepest_of_other >= FEW_RULES:
        return None
    longer = statistics.median(loopback[family]) - statistics.median(loopback[other])
    return max(0.0, longer) / deepest
