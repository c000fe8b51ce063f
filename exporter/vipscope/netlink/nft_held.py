"""kube-proxy's program as nf_tables holds it, kept so beside a mirror at the cost of what changes.

Chains that the mirror's journal names are read again, and what they lead to is put where it is
compared with the API. Mode iptables with backend nft, and mode nftables.
"""

from __future__ import annotations

from collections.abc import Mapping

from vipscope.dataplane.desired import Family
from vipscope.dataplane.naming import KUBE_PROXY_TABLE
from vipscope.dataplane.programmed import (
    ENTRY_CHAINS,
    ENTRY_MAPS,
    LOOKUP,
    Mode,
    Programmed,
    ProxyRule,
    content,
    is_relevant,
)
from vipscope.dataplane.traffic import WAYS_IN, Traffic
from vipscope.netlink.nf_tables import Reader
from vipscope.netlink.nfnetlink import GoneError
from vipscope.netlink.nft_mirror import Journal, Mirror
from vipscope.netlink.nft_program import (
    ADDRESS_FAMILIES,
    ANONYMOUS,
    Decoder,
    Element,
    backend,
    entry,
)

FAMILIES: Mapping[int, Family] = {2: "ipv4", 10: "ipv6"}
_TABLES: tuple[tuple[str, Mode], ...] = (("nat", "iptables"), (KUBE_PROXY_TABLE, "nftables"))
"""Where the chains of Services are."""

Key = tuple[int, str, str]
"""(nf_tables family, table, chain or set)."""


class Held:
    """The program of each mode and family. What kube-proxy never wrote is empty."""

    def __init__(self) -> None:
        self.journal = Journal()
        """To be given to the mirror."""
        self.programs: dict[tuple[Mode, Family], Programmed] = {
            (mode, family): Programmed(mode) for _, mode in _TABLES for family in FAMILIES.values()
        }
        self._decoders = {family: Decoder(family) for family in ADDRESS_FAMILIES}

    @property
    def unread(self) -> bool:
        """Whether anything has to be read before this is what the kernel holds."""
        return bool(self.journal.refilled or self.journal.chains or self.journal.sets)

    def refresh(self, reader: Reader, mirror: Mirror) -> None:
        """Read what changed since the last time. Raises InterruptedDumpError, BrokenError.

        What is unread after an exception stays so.
        """
        if self.journal.refilled:
            self._mark_all(mirror)
            self.journal.refilled = False
        for key in [*self.journal.chains]:
            self._read_chain(reader, mirror, key)
            self.journal.chains.discard(key)
        for key in [*self.journal.sets]:
            self._read_set(reader, mirror, key)
            self.journal.sets.discard(key)

    def read_counters(self, reader: Reader, mirror: Mirror, traffic: Traffic) -> None:
        """Read the packet counters of mode iptables. Raises InterruptedDumpError, BrokenError."""
        for family, label in FAMILIES.items():
            for name in WAYS_IN:
                if mirror.has_chain(family, "nat", name):
                    rules = reader.counted_rules(self._decoders[family], family, "nat", name)
                    traffic.read_ways_in((label, name), rules)
            for chain in traffic.watched:
                if chain[0] == label and mirror.has_chain(family, "nat", chain[1]):
                    decoder = self._decoders[family]
                    rules = reader.counted_rules(decoder, family, "nat", chain[1])
                    traffic.read_backends(chain, rules)

    def _mark_all(self, mirror: Mirror) -> None:
        """Everything that is there has to be read; what is not there any more is gone."""
        chains = {key for key in mirror.chain_keys() if _mode(key) is not None}
        self.journal.chains |= chains
        for family, label in FAMILIES.items():
            for table, mode in _TABLES:
                program = self.programs[mode, label]
                program.keep_chains(
                    {name for of, at, name in chains if (of, at) == (family, table)}
                )
            self.journal.chains |= {(family, *each) for each in ENTRY_CHAINS}
            self.journal.sets |= {(family, KUBE_PROXY_TABLE, name) for name in ENTRY_MAPS}

    def _read_chain(self, reader: Reader, mirror: Mirror, key: Key) -> None:
        mode = _mode(key)
        if mode is None:
            return
        family, table, chain = key
        program = self.programs[mode, FAMILIES[family]]
        rules: list[ProxyRule] | None = None
        if mirror.has_chain(*key):
            rules = reader.proxy_rules(self._decoders[family], *key)
            if table == KUBE_PROXY_TABLE:
                rules = [each for rule in rules for each in resolved(reader, family, table, rule)]
        if mode == "iptables":
            program.put_rules(table, chain, rules)
        else:
            program.put_chain(chain, None if rules is None else content(rules))

    def _read_set(self, reader: Reader, mirror: Mirror, key: Key) -> None:
        family, _, name = key
        if name not in ENTRY_MAPS or family not in FAMILIES:
            return
        elements = map_elements(reader, *key) if mirror.has_set(*key) else []
        found = frozenset([entry(name, family, element) for element in elements])
        self.programs["nftables", FAMILIES[family]].put_entries(name, found)


def _mode(key: Key) -> Mode | None:
    """Of which mode a chain is part; None where it is nothing of Services."""
    family, table, chain = key
    if family not in FAMILIES:
        return None
    if table == KUBE_PROXY_TABLE:
        return "nftables"
    return "iptables" if is_relevant(table, chain) else None


def resolved(reader: Reader, family: int, table: str, rule: ProxyRule) -> list[ProxyRule]:
    """A rule, or one for each element of the anonymous map that it looks its packets up in.

    Raises InterruptedDumpError, BrokenError.
    """
    if not rule.target.startswith(ANONYMOUS):
        return [rule]
    return [
        ProxyRule(target=element.target)
        if element.target
        else ProxyRule(endpoint=backend(family, element))
        for element in map_elements(reader, family, table, rule.target[len(LOOKUP) :])
    ]


def map_elements(reader: Reader, family: int, table: str, name: str) -> list[Element]:
    """The elements of a set or map; none when it is not there. Raises InterruptedDumpError."""
    try:
        return reader.map_elements(family, table, name)
    except GoneError:
        return []  # since the mirror was brought up to date: the journal is about to name it again
