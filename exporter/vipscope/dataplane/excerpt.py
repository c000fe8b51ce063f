"""One Service port's part of kube-proxy's program: no more is read than concerns it.

Which chains to read follows from their names, which can be computed, and from where the rules lead.
So the cost follows the Service and not the ruleset, but for the chains and maps that all Services
share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vipscope.dataplane.expected import Entry, Expected
from vipscope.dataplane.naming import KUBE_PROXY_TABLE
from vipscope.dataplane.programmed import (
    BASE_CHAINS,
    ENTRY_CHAINS,
    ENTRY_MAPS,
    LOOKUP,
    REFUSALS,
    Destination,
    Programmed,
    ProxyRule,
    content,
    entries,
    stem,
)

Rules = Callable[[str, Collection[str]], Mapping[str, Sequence[ProxyRule]]]
"""(table, chains) -> the rules of those of the chains that are there."""
Elements = Callable[[str], frozenset[Entry]]
"""One of `ENTRY_MAPS` -> its elements; none when it is not there."""

_WAY_IN: Final = ("nat-prerouting", "nat-output", "services")
"""Chains of mode nftables that lead to Services."""


class Position(NamedTuple):
    """Where a rule stands in its chain."""

    number: int
    """From 1."""
    of: int
    """Rules in the chain."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What was read of one mode's program in one address family."""

    program: Programmed
    """With all ways in, and the content of those chains that concern the Service port."""
    positions: Mapping[Entry, Position] = field(default_factory=dict)
    """Of its ways in that are rules: elements of maps and virtual servers have none."""
    jumps: Mapping[tuple[str, str], Position] = field(default_factory=dict)
    """(chain, where its rule leads) -> the first such rule, of chains that all Services share."""

    def unexpected(self, wanted: Expected, destination: Destination) -> frozenset[Entry]:
        """Ways in that lead to the Service port, or take its cluster IP, and are not wanted."""
        return frozenset(_ways(self.program, wanted, destination)) - wanted.entries


def of_iptables(wanted: Expected, destination: Destination, rules: Rules) -> Excerpt:
    """Mode iptables. `destination` is the cluster IP's."""
    program = Programmed("iptables")
    positions: dict[Entry, Position] = {}
    jumps: dict[tuple[str, str], Position] = {}
    addresses = {entry[1:4] for entry in wanted.entries} | {destination}
    for table in ("filter", "nat"):
        shared = {chain for at, chain in ENTRY_CHAINS | BASE_CHAINS if at == table}
        for chain, found in rules(table, shared).items():
            program.put_rules(table, chain, found)
            for position, rule in _numbered(found):
                if rule.address is not None and rule[:3] in addresses:
                    for entry in entries(f"{table}/{chain}", (rule,))[0]:
                        positions.setdefault(entry, position)
                if table == "nat" and rule.target and not rule.port:
                    jumps.setdefault((chain, rule.target), position)
    _follow(program, wanted, destination, lambda chains: rules("nat", chains))
    return Excerpt(program, positions, jumps)


def of_nftables(
    wanted: Expected, destination: Destination, rules: Rules, elements: Elements
) -> Excerpt:
    """Mode nftables. `destination` is the cluster IP's."""
    program = Programmed("nftables")
    for name in ENTRY_MAPS:
        program.put_entries(name, elements(name))
    jumps: dict[tuple[str, str], Position] = {}
    for chain, found in rules(KUBE_PROXY_TABLE, _WAY_IN).items():
        program.put_chain(chain, content(found))
        for position, rule in _numbered(found):
            if rule.target:
                jumps.setdefault((chain, rule.target), position)
    _follow(program, wanted, destination, lambda chains: rules(KUBE_PROXY_TABLE, chains))
    return Excerpt(program, jumps=jumps)


def _follow(
    program: Programmed,
    wanted: Expected,
    destination: Destination,
    rules: Callable[[Collection[str]], Mapping[str, Sequence[ProxyRule]]],
) -> None:
    """Read the Service port's chains, and those that they lead to."""
    ahead = {*wanted.chains, *(e.target for e in _ways(program, wanted, destination))} - REFUSALS
    seen: set[str] = set()
    while ahead := {chain for chain in ahead - seen if not chain.startswith(LOOKUP)}:
        seen |= ahead
        leads: set[str] = set()
        for chain, found in rules(ahead).items():
            now = content(found)
            program.put_chain(chain, now)
            leads.update(now.leads)
        ahead = leads


def _ways(program: Programmed, wanted: Expected, destination: Destination) -> Iterable[Entry]:
    yield from program.at(destination)
    for own in {stem(chain) for chain in wanted.chains}:
        yield from program.to(own)


def _numbered(rules: Sequence[ProxyRule]) -> Iterable[tuple[Position, ProxyRule]]:
    return ((Position(number, len(rules)), rule) for number, rule in enumerate(rules, 1))
