"""kube-proxy's program as iptables-legacy holds it: mode iptables.

The kernel tells nobody of a change, and gives a table only as a whole, so all entries are copied
each time; what is the same as before, or is of another Service, costs nothing further on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from vipscope.dataplane.desired import Family
from vipscope.dataplane.excerpt import Excerpt, of_iptables
from vipscope.dataplane.expected import Expected
from vipscope.dataplane.programmed import (
    ENTRY_CHAINS,
    Destination,
    Programmed,
    ProxyRule,
    is_relevant,
)
from vipscope.dataplane.traffic import WAYS_IN, Traffic
from vipscope.netlink.xtables import Table

TABLES = ("nat", "filter")


def refresh(tables: Mapping[str, Table], program: Programmed) -> None:
    """Bring a program of mode iptables up to what the tables of its family hold.

    Raises BrokenError; then the program may be half of what it was.
    """
    seen: set[tuple[str, str]] = set()
    for name in TABLES:
        if name in tables:
            for chain, rules in tables[name].proxy_rules(partial(is_relevant, name)):
                program.put_rules(name, chain, rules)
                seen.add((name, chain))
    for name, chain in ENTRY_CHAINS - seen:
        program.put_rules(name, chain, None)
    program.keep_chains({chain for name, chain in seen if name == "nat"})


def read_counters(table: Table, family: Family, traffic: Traffic) -> None:
    """Read the packet counters of the table nat. Raises BrokenError."""
    watched = {name for of, name in traffic.watched if of == family}
    for name, rules in table.counted_rules(lambda name: name in WAYS_IN or name in watched):
        if name in WAYS_IN:
            traffic.read_ways_in((family, name), rules)
        else:
            traffic.read_backends((family, name), rules)


def excerpt(tables: Mapping[str, Table], wanted: Expected, destination: Destination) -> Excerpt:
    """One Service port's part. Raises BrokenError."""

    def rules(table: str, chains: Collection[str]) -> Mapping[str, Sequence[ProxyRule]]:
        names = frozenset(chains)
        found = tables[table].proxy_rules(names.__contains__) if table in tables else ()
        return dict(found)

    return of_iptables(wanted, destination, rules)
