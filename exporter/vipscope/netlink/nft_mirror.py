"""nf_tables as it is now, kept so at the cost of what changes.

A mirror is read once in full. After that it takes the kernel's notifications: chains, sets and
elements follow from these alone, and the rules of chains that a first packet passes where what is
told of them fits; any other chain whose rules changed is read again, and only it. Two orders make
this exact: the notifications are subscribed to before the full read, and whoever uses the
mirror compares the kernel's generation with that of the last commit it was told of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vipscope.dataplane.depth import service_depths
from vipscope.dataplane.naming import (
    CLASS_PREFIX_LENGTH,
    CLASS_PREFIXES,
    KUBE_PROXY,
    KUBE_PROXY_TABLE,
    chain_class,
    set_name,
)
from vipscope.netlink.nf_tables import (
    FAMILIES,
    PREROUTING,
    ChainHead,
    ChainRun,
    Reader,
    SetHead,
)
from vipscope.netlink.nft_notify import (
    ChainChange,
    Change,
    ElementChange,
    SetChange,
    TableChange,
)
from vipscope.netlink.nft_order import RuleOrder
from vipscope.snapshot import Count, Rule

MOST_TABLES = 64
"""Tables that are told apart."""

# Which families' chains a packet of each address family passes.
_PATHS = {"ipv4": ("ipv4", "inet"), "ipv6": ("ipv6", "inet")}

TableKey = tuple[int, str]
"""(nf_tables family, table)."""


class LostTrackError(Exception):
    """What was notified does not fit what was read: everything has to be read again."""


@dataclass(slots=True)
class _Table:
    chains: dict[str, int] = field(default_factory=dict)
    """Chain -> rules."""
    hooks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Base chain -> (hook, priority)."""
    sets: dict[str, set[bytes]] = field(default_factory=dict)
    """kube-proxy's named sets and maps -> keys of their elements."""
    expiring: set[str] = field(default_factory=set)
    """Those of them whose elements come and go unnotified."""
    counts: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """(owner, class) -> [rules, chains]."""
    newest: int = 0
    """The highest chain handle seen; handles only grow."""


@dataclass(slots=True)
class Journal:
    """What became different in a mirror, for whoever keeps more of the kernel's state than it does.

    As (family, table, name). What is named may be gone.
    """

    chains: set[tuple[int, str, str]] = field(default_factory=set)
    sets: set[tuple[int, str, str]] = field(default_factory=set)
    """Those of them that the mirror keeps: kube-proxy's named sets and maps."""
    refilled: bool = False
    """Whether the mirror was read anew, so that anything may be different."""


class Mirror:
    """The tables of one network namespace. It writes into a journal where one is given."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal
        self._tables: dict[TableKey, _Table] = {}
        self._unread_chains: set[tuple[int, str, str]] = set()
        self._unread_sets: set[tuple[int, str, str]] = set()
        self._way: dict[tuple[int, str, str], RuleOrder] = {}
        """The chains that a first packet passes."""
        self._depths: dict[str, tuple[int, ...]] = {}
        """Address family -> depths; missing when they have to be walked again."""

    def keep(self, journal: Journal) -> None:
        """Write into a journal from now on, to which all that is there is new."""
        self._journal = journal
        journal.refilled = True

    def fill(self, reader: Reader) -> None:
        """Read everything into an empty mirror.

        Raises InterruptedDumpError when a commit came between; then it is of no use any more.
        """
        chains: dict[TableKey, list[str]] = {key: [] for key in reader.tables()}
        self._tables = {key: _Table() for key in chains}
        for chain in reader.chains():
            key = chain.family, chain.table
            table = self._tables.setdefault(key, _Table())
            names = chains.setdefault(key, [])
            if isinstance(chain, ChainRun):
                names += chain.names
                table.newest = max(table.newest, chain.newest)
            else:
                names.append(chain.name)
                self._take_head(table, chain)
        for each in reader.sets():
            self._add_set(each)
        self.refresh(reader)
        self.depths(reader)
        for (family, name), table in self._tables.items():
            names = chains.get((family, name), [])
            read = {
                chain: len(order)
                for (of, at, chain), order in self._way.items()
                if (of, at) == (family, name)
            }
            unread = [chain for chain in names if chain not in read]
            rules = reader.count_rules(family, name, unread)
            table.chains = dict(zip(unread, rules, strict=True))
            table.chains |= {chain: read[chain] for chain in names if chain in read}
            _recount(name, table)
        if self._journal is not None:
            self._journal.refilled = True

    def apply(self, changes: Sequence[Change]) -> None:
        """Take changes in the kernel's order. Raises LostTrackError."""
        for change in changes:
            match change:
                case ChainChange(added=True):
                    self._take_new_chain(change.chain)
                case ChainChange():
                    self._remove_chain(change.chain)
                case ElementChange():
                    self._take_elements(change)
                case SetChange():
                    self._take_set(change)
                case TableChange(added=True):
                    self._tables.setdefault((change.family, change.table), _Table())
                case TableChange():
                    self._remove_table(change.family, change.table)

    @property
    def orders(self) -> Mapping[tuple[int, str, str], RuleOrder]:
        """Chains whose rules the mirror keeps, to be told of each one that comes or goes."""
        return self._way

    def mark(
        self,
        chains: Iterable[tuple[int, str, str]],
        followed: Collection[tuple[int, str, str]] = (),
    ) -> None:
        """Take note of chains, as (family, table, chain), in which rules came or went.

        `followed` are those of them whose order was told of each. To be called after `apply`.
        """
        for key in chains:
            order = self._way.get(key) if self.has_chain(*key) else None
            if order is not None and key in followed and order.fits:
                self._take_rules(key, order)
            else:
                self._unread_chains.add(key)

    @property
    def unread(self) -> bool:
        """Whether anything has to be read again before the mirror is what the kernel holds."""
        return bool(self._unread_chains or self._unread_sets)

    @property
    def walked(self) -> bool:
        """Whether what `depths` told last holds for the mirror as it is now."""
        return bool(self._depths)

    def refresh(self, reader: Reader) -> None:
        """Read again what changed, and only that. Raises InterruptedDumpError."""
        unread: dict[TableKey, list[str]] = {}
        while self._unread_chains:
            key = family, name, chain = self._unread_chains.pop()
            table = self._tables.get((family, name))
            if table is None or chain not in table.chains:
                continue  # gone since
            if key in self._way:
                self._way[key] = reader.rules(*key)
                self._take_rules(key, self._way[key])
            else:
                unread.setdefault((family, name), []).append(chain)
        for (family, name), chains in unread.items():
            counts = reader.count_rules(family, name, chains)
            for chain, rules in zip(chains, counts, strict=True):
                self._set_rules((family, name, chain), rules)
        for set_key in list(self._unread_sets):
            self._read_set(reader, set_key)
            self._unread_sets.discard(set_key)

    def refresh_expiring(self, reader: Reader) -> None:
        """Read the sets whose elements come and go unnotified. Raises InterruptedDumpError."""
        for (family, name), table in self._tables.items():
            for each in table.expiring & table.sets.keys():
                self._read_set(reader, (family, name, each))

    def has_tables(self, tables: Sequence[TableKey]) -> bool:
        """Whether these are all its tables: one that dies with its owner is not notified."""
        return self._tables.keys() == set(tables)

    def chain_keys(self) -> Iterator[tuple[int, str, str]]:
        """(family, table, chain) of each chain."""
        for (family, name), table in self._tables.items():
            for chain in table.chains:
                yield family, name, chain

    def has_chain(self, family: int, table: str, chain: str) -> bool:
        """Whether there is such a chain."""
        held = self._tables.get((family, table))
        return held is not None and chain in held.chains

    def has_set(self, family: int, table: str, name: str) -> bool:
        """Whether kube-proxy's table has such a named set or map."""
        return name in self._sets(family, table)

    def counts(self) -> Mapping[tuple[str, str, str, str], Count]:
        """(family, table, owner, class) -> rules and chains.

        Past MOST_TABLES the tables with the fewest rules, none of kube-proxy's among them, share
        the name "": whoever makes tables must not be able to make series without end.
        """
        named = set(sorted(self._tables, key=self._rank)[:MOST_TABLES])
        sums: dict[tuple[str, str, str, str], Count] = {}
        for key, table in self._tables.items():
            name = printable(key[1]) if key in named else ""
            for (owner, kind), (rules, chains) in table.counts.items():
                if chains:
                    place = (label(key[0]), name, owner, kind)
                    before = sums.get(place, Count(0, 0))
                    sums[place] = Count(before.rules + rules, before.chains + chains)
        return sums

    def _rank(self, key: TableKey) -> tuple[bool, int, TableKey]:
        """What is told apart first: kube-proxy's tables, then those with the most rules."""
        counts = self._tables[key].counts
        foreign = not any(owner == KUBE_PROXY for owner, _ in counts)
        return foreign, -sum(rules for rules, _ in counts.values()), key

    def set_elements(self, *, expiring: bool) -> Mapping[tuple[str, str, str], int]:
        """(family, table, set) -> elements of kube-proxy's named sets and maps.

        Without `expiring`, those are left out whose elements come and go unnotified.
        """
        result: dict[tuple[str, str, str], int] = {}
        for (family, name), table in self._tables.items():
            for each, keys in table.sets.items():
                if each in table.expiring and not expiring:
                    continue
                key = label(family), printable(name), printable(set_name(each))
                result[key] = result.get(key, 0) + len(keys)
        return result

    def depths(self, reader: Reader) -> Mapping[str, tuple[int, ...]]:
        """Address family -> rules before each Service's own, where any Service is reached.

        Reads the rules of the chains that a first packet passes, once for each change of them.
        """
        if not self._depths:
            for family, passed in _PATHS.items():
                self._depths[family] = self._walk(reader, passed)
        return {family: found for family, found in self._depths.items() if found}

    def _walk(self, reader: Reader, passed: Sequence[str]) -> tuple[int, ...]:
        hooked = sorted(
            (priority, passed.index(label(family)), (family, name), chain)
            for (family, name), table in self._tables.items()
            if label(family) in passed
            for chain, (hook, priority) in table.hooks.items()
            if hook == PREROUTING
        )
        keys = {_way_name(key): key for _, _, key, _ in hooked}

        def rules(chain: tuple[str, str]) -> Iterable[Rule]:
            family, table = keys[chain[0]]
            key = family, table, chain[1]
            if key not in self._way:
                self._way[key] = reader.rules(*key)
            return self._way[key].rules()

        def size(table: str, name: str) -> int:
            return len(self._tables[keys[table]].sets.get(name, ()))

        return service_depths([(_way_name(key), chain) for _, _, key, chain in hooked], rules, size)

    def _sets(self, family: int, table: str) -> dict[str, set[bytes]]:
        held = self._tables.get((family, table))
        return {} if held is None else held.sets

    def _take_new_chain(self, chain: ChainHead) -> None:
        table = self._tables.setdefault((chain.family, chain.table), _Table())
        if chain.name not in table.chains and chain.handle <= table.newest:
            # An old handle under a new name: a chain was renamed. The old name is not notified.
            raise LostTrackError(f"chain {chain.name} was renamed")
        self._add_chain(chain)

    def _take_head(self, table: _Table, chain: ChainHead) -> None:
        table.newest = max(table.newest, chain.handle)
        if chain.hook is not None:
            table.hooks[chain.name] = chain.hook, chain.priority
            self._depths.clear()

    def _add_chain(self, chain: ChainHead) -> None:
        table = self._tables.setdefault((chain.family, chain.table), _Table())
        self._take_head(table, chain)
        if chain.name not in table.chains:
            table.chains[chain.name] = 0
            _count(chain.table, table, chain.name, 0, 1)
            if self._journal is not None:
                self._journal.chains.add((chain.family, chain.table, chain.name))

    def _remove_chain(self, chain: ChainHead) -> None:
        table = self._tables.get((chain.family, chain.table))
        if table is None or chain.name not in table.chains:
            return
        _count(chain.table, table, chain.name, -table.chains.pop(chain.name), -1)
        if self._journal is not None:
            self._journal.chains.add((chain.family, chain.table, chain.name))
        if table.hooks.pop(chain.name, None) is not None:
            self._depths.clear()
        self._way.pop((chain.family, chain.table, chain.name), None)

    def _take_rules(self, key: tuple[int, str, str], order: RuleOrder) -> None:
        self._set_rules(key, len(order))
        self._depths.clear()

    def _set_rules(self, key: tuple[int, str, str], rules: int) -> None:
        family, name, chain = key
        table = self._tables[family, name]
        before = table.chains[chain]
        if rules != before:
            table.chains[chain] = rules
            _count(name, table, chain, rules - before, 0)
        if self._journal is not None:
            self._journal.chains.add(key)

    def _add_set(self, head: SetHead) -> None:
        if head.table != KUBE_PROXY_TABLE or head.anonymous:
            return
        table = self._tables.setdefault((head.family, head.table), _Table())
        table.sets[head.name] = set()
        if head.expiring:
            table.expiring.add(head.name)
        else:
            table.expiring.discard(head.name)
        self._unread_sets.add((head.family, head.table, head.name))

    def _read_set(self, reader: Reader, key: tuple[int, str, str]) -> None:
        family, name, each = key
        held = self._sets(family, name)
        if each in held:
            held[each] = reader.elements(*key)
            self._depths.clear()
            self._note_set(*key)

    def _take_set(self, change: SetChange) -> None:
        held = self._sets(change.set.family, change.set.table)
        if not change.added:
            held.pop(change.set.name, None)
            self._note_set(change.set.family, change.set.table, change.set.name)
        elif change.set.name not in held:
            self._add_set(change.set)

    def _take_elements(self, change: ElementChange) -> None:
        held = self._sets(change.family, change.table).get(change.set)
        if held is None:
            return
        if change.added:
            held.update(change.keys)
        else:
            held.difference_update(change.keys)
        self._depths.clear()
        self._note_set(change.family, change.table, change.set)

    def _note_set(self, family: int, table: str, name: str) -> None:
        if self._journal is not None:
            self._journal.sets.add((family, table, name))

    def _remove_table(self, family: int, table: str) -> None:
        removed = self._tables.pop((family, table), None)
        if removed is not None and self._journal is not None:
            self._journal.chains.update((family, table, chain) for chain in removed.chains)
            self._journal.sets.update((family, table, name) for name in removed.sets)
        self._depths.clear()
        for key in [key for key in self._way if key[:2] == (family, table)]:
            del self._way[key]


def label(family: int) -> str:
    """A family as a label's value."""
    return FAMILIES.get(family, str(family))


def printable(name: str) -> str:
    """A name from the kernel as a label's value: bytes that are no UTF-8 as backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _way_name(key: TableKey) -> str:
    return f"{key[0]} {key[1]}"


def _recount(name: str, table: _Table) -> None:
    """Add up a table's chains by class; of those whose first letters tell it, by these."""
    table.counts = {}
    by_start: dict[str, list[int]] = {}
    for chain, rules in table.chains.items():
        start = chain[:CLASS_PREFIX_LENGTH]
        count = by_start.get(start)
        if count is None:
            count = table.counts.setdefault(chain_class(name, chain), [0, 0])
            if start in CLASS_PREFIXES and name != KUBE_PROXY_TABLE:
                by_start[start] = count
        count[0] += rules
        count[1] += 1


def _count(name: str, table: _Table, chain: str, rules: int, chains: int) -> None:
    key = chain_class(name, chain)
    count = table.counts.get(key)
    if count is None:
        count = table.counts[key] = [0, 0]
    count[0] += rules
    count[1] += chains
