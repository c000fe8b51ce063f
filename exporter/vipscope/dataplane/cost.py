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
"""Below which a median tells nothing."""
FEW_RULES = 500
"""Depth of the deepest Service below which rules are lost in what else makes a handshake longer
than the round trip after it: so many take 2 to 40 µs, and a connection without rules some 4."""


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
    family that has no Services. `loopback` is family -> seconds by which handshakes of this node
    with itself took longer than the round trips after them. Of IPv4, where there are Services by
    IPv4. None without Services, with few rules, or with too few handshakes to tell.
    """
    family = min(depths, default="")
    ascending = depths.get(family)
    if not ascending or ascending[-1] < FEW_RULES or len(loopback[family]) < LEAST_HANDSHAKES:
        return None
    # A handshake on loopback is no Service's, so it is checked against the rules of all, thus
    # against as many as one for the deepest is.
    rule = statistics.median(loopback[family]) / ascending[-1]
    return nearest_rank(ascending, 0.5) * rule
