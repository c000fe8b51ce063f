"""What one kube-proxy mode's program on a node holds for Services, comparable with `expected`.

The readers of nf_tables, iptables-legacy and IPVS bring it up to date chain by chain; what differed
is remembered until it is asked for, so that a join can follow the change. One object for each
address family, because kube-proxy programs them apart and names do not tell them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeVar

from vipscope.dataplane.expected import VIRTUAL_SERVER, Entry

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

Mode = Literal["iptables", "nftables", "ipvs"]

ENTRY_CHAINS: Final = frozenset(
    (
        ("nat", "KUBE-SERVICES"),
        ("nat", "KUBE-NODEPORTS"),
        ("filter", "KUBE-SERVICES"),
        ("filter", "KUBE-EXTERNAL-SERVICES"),
        ("filter", "KUBE-PROXY-FIREWALL"),
    )
)
"""(table, chain) in mode iptables whose rules are ways in."""
BASE_CHAINS: Final = frozenset((("nat", "PREROUTING"), ("nat", "OUTPUT")))
"""Where mode iptables gets its packets from."""
ENTRY_MAPS: Final = frozenset(
    (
        "cluster-ips",
        "service-ips",
        "service-nodeports",
        "no-endpoint-services",
        "no-endpoint-nodeports",
        "firewall-ips",
    )
)
"""Sets and maps in mode nftables whose elements are ways in."""
LOOKUP: Final = "@"
"""In `Content.leads` before the name of a map: the chain looks its packets up there."""

REFUSALS: Final = frozenset(("REJECT", "DROP", "reject-chain", "drop", ""))
"""Targets of entries that lead to no Service port's chain; "" in set cluster-ips."""

_CHAINS_OF_SERVICES = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-")
_MARKING = frozenset(("KUBE-MARK-MASQ", "mark-for-masquerade"))
"""Chains that come back without having led anywhere: most rules' targets."""

Destination = tuple[str, str, int]
"""Address, protocol and port of an entry."""


class ProxyRule(NamedTuple):
    """What of one rule tells to which destination it applies, and where it leads."""

    address: str | None = ""
    """The whole destination address, "" when it asks for none, None when for anything else."""
    protocol: str = ""
    port: int = 0
    """The destination port, 0: none, or more than one."""
    target: str = ""
    """A chain, `REJECT` or `DROP`; a map after `LOOKUP`; "" when it leads nowhere."""
    endpoint: str = ""
    """Where it translates the destination to, as kube-proxy writes it: `ip:port`."""
    recalled: bool = False
    """Whether it asks for clients that were there before: session affinity."""


class Content(NamedTuple):
    """Where a chain or virtual server leads."""

    leads: tuple[str, ...] = ()
    """Chains that its rules lead to, and maps after `LOOKUP`, ways in left out."""
    endpoints: tuple[str, ...] = ()
    """Where its own rules send packets."""


_NOWHERE = Content()


class Changes(NamedTuple):
    """What became different."""

    entries: frozenset[Entry]
    stems: frozenset[str]
    """Of chains that changed, or whose endpoints' chains did."""


def stem(chain: str) -> str:
    """What all chains of one Service port have in common in a mode, and no other port's.

    The hash in mode iptables; hash and name in mode nftables; a virtual server's name is its own.
    """
    if chain.startswith("KUBE-"):
        return chain[chain.rindex("-") + 1 :]
    return chain.partition("-")[2] or chain


def is_relevant(table: str, chain: str) -> bool:
    """Whether mode iptables keeps something of Services in this chain."""
    return (
        (table == "nat" and chain.startswith(_CHAINS_OF_SERVICES))
        or (table, chain) in ENTRY_CHAINS
        or (table, chain) in BASE_CHAINS
    )


def content(rules: Iterable[ProxyRule]) -> Content:
    """What a chain's rules lead new clients to, whatever else their conditions are."""
    leads: list[str] = []
    endpoints: list[str] = []
    for rule in rules:
        if rule.endpoint:
            endpoints.append(rule.endpoint)
        elif rule.target and rule.target not in _MARKING and not rule.recalled:
            leads.append(rule.target)
    return Content(tuple(leads), tuple(endpoints))


def entries(place: str, rules: Iterable[ProxyRule]) -> tuple[frozenset[Entry], Content]:
    """The ways in that a chain of `ENTRY_CHAINS` holds, and what its other rules lead to."""
    found: list[Entry] = []
    others: list[ProxyRule] = []
    for rule in rules:
        if not rule.port:
            others.append(rule)
        elif rule.target not in _MARKING and rule.target and rule.address is not None:
            found.append(Entry(place, rule.address, rule.protocol, rule.port, rule.target))
    return frozenset(found), content(others)


class Programmed:
    """One mode's program in one address family."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self._contents: dict[str, Content] = {}
        self._entries: dict[str, frozenset[Entry]] = {}
        """By place."""
        self._by_destination: dict[Destination, tuple[Entry, ...]] = {}
        self._by_stem: dict[str, tuple[Entry, ...]] = {}
        """By the stem of the chain or virtual server that entries lead to."""
        self._referrers: dict[str, tuple[str, ...]] = {}
        """Chain -> chains of other stems that lead to it: Service chains to those of endpoints."""
        self._changed_entries: set[Entry] = set()
        self._changed_stems: set[str] = set()

    # --- as the readers tell it -------------------------------------------------------------------

    def put_entries(self, place: str, now: frozenset[Entry]) -> None:
        """All ways in of one place."""
        before = self._entries.get(place, frozenset())
        self._entries[place] = now
        for entry in before - now:
            _drop(self._by_destination, entry[1:4], entry)
            if entry.target not in REFUSALS:
                _drop(self._by_stem, stem(entry.target), entry)
        for entry in now - before:
            _add(self._by_destination, entry[1:4], entry)
            if entry.target not in REFUSALS:
                _add(self._by_stem, stem(entry.target), entry)
        self._changed_entries |= before ^ now

    def put_rules(self, table: str, chain: str, rules: Sequence[ProxyRule] | None) -> None:
        """A chain's rules in mode iptables, where it `is_relevant`; None: it is gone."""
        rest = content(rules or ())
        if (table, chain) in ENTRY_CHAINS:
            place = f"{table}/{chain}"
            found, rest = entries(place, rules or ())
            self.put_entries(place, found)
        if table != "filter":  # where chains have the same names as in nat
            self.put_chain(chain, None if rules is None else rest)

    def put_chain(self, chain: str, now: Content | None) -> None:
        """A chain's or a virtual server's content; None: it is gone."""
        before = self._contents.get(chain)
        if before == now:
            return
        if now is None:
            del self._contents[chain]
        else:
            self._contents[chain] = now
        self._refer(chain, before or _NOWHERE, now or _NOWHERE)
        self._changed_stems.add(stem(chain))
        self._changed_stems.update(map(stem, self._referrers.get(chain, ())))

    def _refer(self, chain: str, before: Content, now: Content) -> None:
        if before.leads == now.leads:
            return
        own = stem(chain)
        old = {lead for lead in before.leads if stem(lead) != own}
        new = {lead for lead in now.leads if stem(lead) != own}
        for lead in old - new:
            _drop(self._referrers, lead, chain)
        alone = (chain,)  # shared by nearly all: 65,000 endpoints in 5,000 Services
        for lead in new - old:
            others = self._referrers.get(lead)
            self._referrers[lead] = (*others, chain) if others else alone

    def keep_chains(self, chains: Collection[str]) -> None:
        """All that are not among these are gone."""
        for chain in self._contents.keys() - chains:
            self.put_chain(chain, None)

    def put_servers(self, servers: Mapping[Entry, tuple[str, ...]]) -> None:
        """All virtual servers with the endpoints to which they send new connections."""
        self.put_entries(VIRTUAL_SERVER, frozenset(servers))
        for entry, endpoints in servers.items():
            self.put_chain(entry.target, Content((), endpoints))
        self.keep_chains({entry.target for entry in servers})

    def take_changes(self) -> Changes:
        """What changed since this was last asked for."""
        changes = Changes(frozenset(self._changed_entries), frozenset(self._changed_stems))
        self._changed_entries.clear()
        self._changed_stems.clear()
        return changes

    @property
    def changed(self) -> bool:
        """Whether `take_changes` has anything to give."""
        return bool(self._changed_entries or self._changed_stems)

    def retell(self) -> None:
        """Let `take_changes` tell all that there is: for a join that begins."""
        self._changed_entries.update(*self._entries.values())
        self._changed_stems.update(map(stem, self._contents))

    # --- as the join asks for it ------------------------------------------------------------------

    def holds(self, entry: Entry) -> bool:
        """Whether a way in is there."""
        return entry in self._entries.get(entry.place, ())

    @property
    def holds_anything(self) -> bool:
        """Whether it has any way in."""
        return any(self._entries.values())

    def is_empty(self, place: str) -> bool:
        """Whether a place has no way in."""
        return not self._entries.get(place)

    def at(self, destination: Destination) -> tuple[Entry, ...]:
        """The ways in for a destination."""
        return self._by_destination.get(destination, ())

    def to(self, stem: str) -> tuple[Entry, ...]:
        """The ways in that lead to chains of a stem."""
        return self._by_stem.get(stem, ())

    def has(self, chain: str) -> bool:
        """Whether a chain or virtual server is there."""
        return chain in self._contents

    def leads(self, chain: str, to: str) -> bool:
        """Whether a chain has a rule that leads to another, or to a map after `LOOKUP`."""
        found = self._contents.get(chain)
        return found is not None and to in found.leads

    def endpoints(self, chain: str) -> set[str]:
        """All endpoints that can be reached from a chain or virtual server."""
        found: set[str] = set()
        seen = {chain}
        ahead = [chain]
        while ahead:
            here = self._contents.get(ahead.pop())
            if here is not None:
                found.update(here.endpoints)
                for lead in here.leads:
                    if lead not in seen:
                        seen.add(lead)
                        ahead.append(lead)
        return found


def _add(index: dict[_Key, tuple[_Value, ...]], key: _Key, value: _Value) -> None:
    index[key] = (*index.get(key, ()), value)


def _drop(index: dict[_Key, tuple[_Value, ...]], key: _Key, value: _Value) -> None:
    left = tuple([each for each in index[key] if each != value])
    if left:
        index[key] = left
    else:
        del index[key]
