"""iptables-legacy: rules and chains of all tables, IPv4 and IPv6, counted from the kernel's copy.

The kernel tells nobody of a change. Each read asks for the sizes of the tables, which costs next to
nothing. All entries are copied and counted when a size has changed, and now and then because rules
can change without it, as the CPU budget allows. Until then the record keeps the last count, and the
time at which it was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.dataplane.depth import Chain, service_depths
from vipscope.dataplane.desired import FAMILIES, Family
from vipscope.dataplane.naming import chain_class
from vipscope.dataplane.programmed import Mode, Programmed
from vipscope.netlink import xt_held
from vipscope.netlink.xtables import LAYOUTS, Table, Tables
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, Count, Rule, Ruleset
from vipscope.sources import Sources

RECOUNT_SHARE = 0.001
"""Share of one core that counting again may take while no size changes: a small ruleset is counted
every second or two, one of 200,000 rules every ten minutes."""
PREROUTING: tuple[Chain, ...] = tuple((table, "PREROUTING") for table in ("raw", "mangle", "nat"))
"""What a packet from a pod passes, in order of priority (enum nf_ip_hook_priorities)."""

Sizes = Mapping[tuple[str, str], tuple[int, int]]
"""(family, table) -> (entries, bytes)."""


class Xtables(Collector):
    """Counts iptables-legacy."""

    name = "xtables"
    interval = 2.0

    def __init__(self, settings: Settings, budget: Budget, sources: Sources | None = None) -> None:
        super().__init__(settings, budget, sources)
        self._held: dict[tuple[Mode, Family], Programmed] = {
            ("iptables", family): Programmed("iptables") for family in FAMILIES
        }
        self.source = self.sources.add("legacy", self._held)
        self._holds = False
        """Whether the programs are those of the last count."""
        self._counted_at = 0.0
        """Monotonic time at which the last count began."""
        self._counted: Ruleset | None = None
        """None before the first count, and when the last one failed: an older one is not shown."""
        self._tried = False
        self._recount_at = 0.0
        """When, by the monotonic clock, the count is too old even if no size has changed."""

    async def read(self) -> Ruleset:
        """The last count, made anew where that is due, with the present sizes of the tables."""
        with self.source.reading():
            record = await self._read()
        if self._holds:
            self.source.confirm(self._counted_at)
        return record

    async def due(self) -> None:
        """After the interval, or when the comparison with the API has a doubt."""
        await asyncio.sleep(self.source.patience(self.interval))

    async def _read(self) -> Ruleset:
        try:
            sizes = await self.worker.run(read_sizes, self.settings.procfs)
        except AbsentError:
            # Tables that come back are others, whatever their size.
            self._tried, self._counted, self._holds = False, None, False
            raise
        if self._is_due(sizes) and (self.budget.solvent() or not self._tried):
            self._tried, self._counted, self._holds = True, None, False
            before, self._counted_at = self.cpu_seconds, time.monotonic()
            keep = self._keep if self.sources.wanted else None
            self._counted = await self.worker.run(count, self.settings.procfs, keep)
            self._holds = keep is not None
            self._recount_at = time.monotonic() + (self.cpu_seconds - before) / RECOUNT_SHARE
            return self._counted
        if self._counted is None:
            raise BrokenError(
                "the last count failed, and the CPU budget does not allow another yet"
            )
        return dataclasses.replace(self._counted, table_sizes=sizes)

    def _keep(self, family: Family, tables: Mapping[str, Table]) -> None:
        """Keep kube-proxy's program, for the comparison with the API."""
        with self.sources.lock:
            xt_held.refresh(tables, self._held["iptables", family])
            if "nat" in tables:
                xt_held.read_counters(tables["nat"], family, self.source.traffic)

    def _is_due(self, sizes: Sizes) -> bool:
        return (
            self._counted is None
            or sizes != self._counted.table_sizes
            or (self.sources.wanted and not self._holds)
            or self.source.is_due(time.monotonic())
            or time.monotonic() >= self._recount_at
        )


def read_sizes(procfs: Path) -> Sizes:
    """The sizes of all tables. Raises AbsentError when there is no table, DeniedError, OSError."""
    with _families(procfs) as families:
        return {
            (family, name): (info.entries, info.size)
            for family, tables in families.items()
            for name in tables.names
            for info in [tables.info(name)]
        }


Keep = Callable[[Family, Mapping[str, Table]], None]
"""Takes a family's tables while they are there."""


def count(procfs: Path, keep: Keep | None = None) -> Ruleset:
    """Count all tables, and show each family's to `keep`, even if it has none.

    Raises as read_sizes() does, and BrokenError.
    """
    counted_at = time.time()
    counts: dict[tuple[str, str, str, str], Count] = {}
    depths: dict[str, tuple[int, ...]] = {}
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    with _families(procfs) as families:
        for family in FAMILIES:
            with contextlib.ExitStack() as stack:
                tables = families.get(family)
                opened = (
                    {name: stack.enter_context(tables.table(name)) for name in tables.names}
                    if tables
                    else {}
                )
                if keep is not None:
                    keep(family, opened)
                for name, table in opened.items():
                    sizes[family, name] = table.info.entries, table.info.size
                    for owner_and_class, each in _counts(table).items():
                        counts[(family, name, *owner_and_class)] = each
                if found := _depths(opened):
                    depths[family] = found
    return Ruleset(
        backend="legacy",
        counts=counts,
        set_elements={},
        depths=depths,
        counted_at=counted_at,
        table_sizes=sizes,
    )


@contextlib.contextmanager
def _families(procfs: Path) -> Iterator[Mapping[str, Tables]]:
    """The families that have tables."""
    with contextlib.ExitStack() as stack:
        families = {}
        for family, layout in LAYOUTS.items():
            with contextlib.suppress(AbsentError):
                families[family] = stack.enter_context(Tables(layout, procfs))
        if not families:
            raise AbsentError("there is no table of iptables-legacy")
        yield families


def _counts(table: Table) -> Mapping[tuple[str, str], Count]:
    """(owner, class) -> rules and chains of one table."""
    rules: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for chain, number in table.chains():
        rules[chain_class(table.info.table, chain)].append(number)
    return {key: Count(sum(numbers), len(numbers)) for key, numbers in rules.items()}


def _depths(tables: Mapping[str, Table]) -> tuple[int, ...]:
    """Depth of each Service port in one family's tables. Raises BrokenError."""

    @functools.cache
    def rules(chain: Chain) -> list[Rule]:
        table, name = chain
        return tables[table].rules(name)

    passed = [chain for chain in PREROUTING if chain[0] in tables]
    try:
        return service_depths(passed, rules, lambda _table, _map: 0)
    except ValueError as error:
        raise BrokenError(str(error)) from None
