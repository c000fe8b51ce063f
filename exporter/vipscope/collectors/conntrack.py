"""Connection tracking: how full its table is, and its statistics."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vipscope.collectors import procfs
from vipscope.collectors.base import Collector
from vipscope.snapshot import AbsentError, BrokenError, Conntrack

COLUMNS: Mapping[str, str] = {
    "found": "found",
    "invalid": "invalid",
    "insert": "insert",
    "insert_failed": "insert_failed",
    "drop": "drop",
    "early_drop": "early_drop",
    "error": "icmp_error",
    "search_restart": "search_restart",
    "clash_resolve": "clashres",
    "chain_too_long": "chainlength",
}
"""Statistic, as ctnetlink calls it -> its column in /proc/net/stat/nf_conntrack.

A kernel too old for a statistic names the column otherwise and prints another number or 0 there:
`searched` where newer ones have `clashres`, `delete_list` where they have `chainlength`. So the
header always tells whether a statistic exists.
"""

_TABLE = re.compile(rb"[a-z_ ]+\n(?:[0-9a-f ]+\n)+")


class ConntrackCollector(Collector):
    """Reads nf_conntrack's sysctls and its per-CPU statistics, all of this network namespace.

    Absent when connection tracking is not in the kernel. No privilege is needed.
    """

    name = "conntrack"
    interval = 2.0

    async def read(self) -> Conntrack:
        """Read four small files."""
        return await self.worker.run(self._read)

    def _read(self) -> Conntrack:
        sysctls = self.settings.procfs / "sys/net/netfilter"
        try:
            statistics = parse_statistics(
                procfs.read(self.settings.procfs / "net/stat/nf_conntrack")
            )
        except AbsentError:  # a kernel built without CONFIG_NF_CONNTRACK_PROCFS, or no conntrack
            statistics = {}
        return Conntrack(
            entries=procfs.number(sysctls / "nf_conntrack_count"),
            limit=procfs.number(sysctls / "nf_conntrack_max"),
            buckets=procfs.number(sysctls / "nf_conntrack_buckets"),
            statistics=statistics,
        )


def parse_statistics(text: bytes) -> Mapping[str, int]:
    """Statistic -> sum over all CPUs, of those that this kernel has; modulo `procfs.COUNTER`.

    The text is a line of column names and a line of hexadecimal numbers for each possible CPU; each
    number is a 32-bit counter that wraps. So does the sum then, like one counter: one that only
    fell by what a CPU has lost would look as if all that is left had come at once. Raises
    BrokenError for anything else.
    """
    if not _TABLE.fullmatch(text):
        raise BrokenError("/proc/net/stat/nf_conntrack is no table of hexadecimal numbers")
    header, *rows = (line.split() for line in text.splitlines())
    if any(len(row) != len(header) for row in rows):
        raise BrokenError("/proc/net/stat/nf_conntrack has rows unlike its header")
    column = {name.decode(): index for index, name in enumerate(header)}
    return {
        name: sum(int(row[column[kernel_name]], 16) for row in rows) % procfs.COUNTER
        for name, kernel_name in COLUMNS.items()
        if kernel_name in column
    }
