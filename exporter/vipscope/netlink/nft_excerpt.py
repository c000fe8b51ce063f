"""One Service port's part of kube-proxy's program, as nf_tables holds it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from vipscope.dataplane.desired import Family
from vipscope.dataplane.excerpt import Excerpt, of_iptables, of_nftables
from vipscope.dataplane.expected import Entry, Expected
from vipscope.dataplane.naming import KUBE_PROXY_TABLE
from vipscope.dataplane.programmed import Destination, ProxyRule
from vipscope.netlink.nf_tables import Reader
from vipscope.netlink.nfnetlink import InterruptedDumpError
from vipscope.netlink.nft_held import FAMILIES, map_elements, resolved
from vipscope.netlink.nft_program import Decoder, entry
from vipscope.snapshot import BrokenError

ATTEMPTS = 5
"""Reads before giving up, when writers change the ruleset meanwhile."""

_NUMBERS = {label: number for number, label in FAMILIES.items()}
_T = TypeVar("_T")


def consistently(read: Callable[[Reader], _T]) -> _T:
    """What `read` reads at one generation of the ruleset. Raises BrokenError when it never does."""
    for _ in range(ATTEMPTS):
        reader = Reader()
        try:
            generation = reader.generation()
            result = read(reader)
            if reader.generation() == generation:
                return result
        except InterruptedDumpError:
            continue
        finally:
            reader.close()
    raise BrokenError(f"the ruleset changed during each of {ATTEMPTS} reads")


def iptables(reader: Reader, family: Family, wanted: Expected, destination: Destination) -> Excerpt:
    """Mode iptables. Raises InterruptedDumpError, BrokenError."""
    return of_iptables(wanted, destination, _Source(reader, family).rules)


def nftables(reader: Reader, family: Family, wanted: Expected, destination: Destination) -> Excerpt:
    """Mode nftables. Raises InterruptedDumpError, BrokenError."""
    source = _Source(reader, family)
    return of_nftables(wanted, destination, source.rules, source.elements)


def tables(reader: Reader, family: Family) -> frozenset[str]:
    """The names of a family's tables."""
    return frozenset(name for of, name in reader.tables() if of == _NUMBERS[family])


class _Source:
    """Reads chains and maps of one family by their names."""

    def __init__(self, reader: Reader, family: Family) -> None:
        self._reader = reader
        self._family = _NUMBERS[family]
        self._decoder = Decoder(self._family)

    def rules(self, table: str, chains: Collection[str]) -> Mapping[str, Sequence[ProxyRule]]:
        found: dict[str, Sequence[ProxyRule]] = {}
        for chain in chains:
            rules = self._reader.proxy_rules(self._decoder, self._family, table, chain)
            if table == KUBE_PROXY_TABLE:
                rules = [
                    each
                    for rule in rules
                    for each in resolved(self._reader, self._family, table, rule)
                ]
            if rules or self._reader.has_chain(self._family, table, chain):
                found[chain] = rules
        return found

    def elements(self, name: str) -> frozenset[Entry]:
        found = map_elements(self._reader, self._family, KUBE_PROXY_TABLE, name)
        return frozenset([entry(name, self._family, element) for element in found])
