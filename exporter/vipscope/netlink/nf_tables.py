"""Reading nf_tables: tables, chains, rules, sets, and the notifications of what changed.

One dump per chain: a dump of all rules at once is quadratic in the kernel, which walks its list from
the start for every 32 KiB. Formats: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vipscope.netlink import nft_rule
from vipscope.netlink.nfnetlink import (
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    Get,
    GetSocket,
    attributes,
    check_error,
    number,
    string_attribute,
    text,
)
from vipscope.snapshot import BrokenError, Rule

FAMILIES = {1: "inet", 2: "ipv4", 3: "arp", 5: "netdev", 7: "bridge", 10: "ipv6"}
"""NFPROTO_* -> label."""
PREROUTING = 0
"""NF_INET_PRE_ROUTING, a base chain's hook."""

SET_ANONYMOUS = 0x1
SET_TIMEOUT = 0x10
SET_EVAL = 0x20
ELEMENT_INTERVAL_END = 0x1


def present(procfs: Path) -> bool:
    """Whether the kernel has nf_tables now.

    Must be asked first: a message to a subsystem that is not there makes the kernel load its module.
    """
    try:
        modules = (procfs / "modules").read_text()
    except FileNotFoundError:
        return True  # A kernel that cannot load modules cannot be made to.
    if re.search(r"^nf_tables ", modules, re.MULTILINE):
        return True
    # Built in? Then its symbols are in kallsyms, without the name of a module behind them.
    with (procfs / "kallsyms").open() as symbols:
        return any(line.endswith(" nf_tables_getgen\n") for line in symbols)


class ChainHead(NamedTuple):
    """A chain without its rules."""

    family: int
    table: str
    name: str
    handle: int
    hook: int | None
    """A base chain's hook, else None."""
    priority: int
    """A base chain's priority at its hook: the lower, the earlier."""


@dataclass(frozen=True, slots=True)
class SetHead:
    """A named or anonymous set or map without its elements."""

    family: int
    table: str
    name: str
    anonymous: bool
    expiring: bool
    """Whether elements come and go without a notification: they time out, or packets add them."""


def chain_head(family: int, payload: memoryview) -> ChainHead:
    """A chain message's attributes -> ChainHead."""
    table = name = ""
    handle, hook, priority = 0, None, 0
    for kind, value in attributes(payload):
        if kind == 1:
            table = text(value)
        elif kind == 2:
            handle = number(value)
        elif kind == 3:
            name = text(value)
        elif kind == 4:
            for sub, each in attributes(value):
                if sub == 1:
                    hook = number(each)
                elif sub == 2:
                    priority = int.from_bytes(each, "big", signed=True)
    return ChainHead(family, table, name, handle, hook, priority)


class _ChainDecoder:
    """Decodes chains, quickly where one looks like the one before but for its name and numbers.

    A layout is learned from a chain that was decoded attribute by attribute: where the headers stand
    and what they say, the table's name included. A chain with the same bytes in the same places has
    its name and handle in the same places too.
    """

    def __init__(self) -> None:
        self._layouts: dict[tuple[int, int], _Layout] = {}

    def __call__(self, family: int, payload: memoryview) -> ChainHead:
        data = bytes(payload)
        layout = self._layouts.get((family, len(data)))
        if layout is not None:
            for start, end, expected in layout.fixed:
                if data[start:end] != expected:
                    break
            else:
                name = data[layout.name].decode("utf-8", "surrogateescape")
                handle = int.from_bytes(data[layout.handle], "big")
                return ChainHead(family, layout.table, name, handle, None, 0)
        chain = chain_head(family, payload)
        if chain.hook is None:
            self._layouts[family, len(data)] = _layout(chain.table, payload)
        return chain


class _Layout(NamedTuple):
    table: str
    fixed: list[tuple[int, int, bytes]]
    """(start, end, bytes) that all chains of this layout share."""
    name: slice
    handle: slice


def _layout(table: str, payload: memoryview) -> _Layout:
    data = bytes(payload)
    fixed, name, handle, offset = [], slice(0), slice(0), 0
    for kind, value in attributes(payload):
        start = offset + 4
        end = start + len(value)
        fixed.append((offset, end if kind == 1 else start, data[offset : end if kind == 1 else start]))
        if kind == 2:
            handle = slice(start, end)
        elif kind == 3:
            name = slice(start, end - 1)
        offset = (end + 3) & ~3
    return _Layout(table, fixed, name, handle)


def set_head(family: int, payload: memoryview) -> SetHead:
    """A set message's attributes -> SetHead."""
    table = name = ""
    flags = 0
    for kind, value in attributes(payload):
        if kind == 1:
            table = text(value)
        elif kind == 2:
            name = text(value)
        elif kind == 3:
            flags = number(value)
    return SetHead(
        family, table, name, bool(flags & SET_ANONYMOUS), bool(flags & (SET_TIMEOUT | SET_EVAL))
    )


def element_keys(payload: memoryview) -> tuple[str, str, list[bytes]]:
    """(table, set, key of each element). The end of an interval is no element of its own."""
    table = name = ""
    keys: list[bytes] = []
    for kind, value in attributes(payload):
        if kind == 1:
            table = text(value)
        elif kind == 2:
            name = text(value)
        elif kind == 3:
            for _, element in attributes(value):
                key, end = _key(element)
                if not end:
                    keys.append(key)
    return table, name, keys


def _key(element: memoryview) -> tuple[bytes, bool]:
    """(identity, whether it is the end of an interval) of a set element."""
    key, flags = b"", 0
    for kind, value in attributes(element):
        if kind in (1, 10):  # NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_KEY_END
            key += bytes(value)
        elif kind == 3:
            flags = number(value)
    return key, bool(flags & ELEMENT_INTERVAL_END)


def tally(words: memoryview, length: int) -> int:
    """Rules in a datagram of a rule dump, seen as 32-bit words; -1 when it ends the dump.

    The one loop over every rule of a node, so it looks at lengths only: each message of such a dump
    but the last is a rule. Raises BrokenError on a length that lies, and what an error message says.
    """
    if length == HEADER or words[1] & 0xFFFF in (NLMSG_DONE, NLMSG_ERROR):
        kind = words[1] & 0xFFFF
        if length < HEADER or kind not in (NLMSG_DONE, NLMSG_ERROR):
            raise BrokenError(f"netlink message of type {kind} in a dump of rules")
        check_error(words.cast("B"))
        return -1
    rules, offset, end = 0, 0, length >> 2
    while offset < end:
        step = words[offset]
        if step < HEADER or step & 3:
            raise BrokenError(f"netlink message of {step} bytes in a dump of rules")
        offset += step >> 2
        rules += 1
    if offset != end or length & 3:
        raise BrokenError("netlink datagram cut off in a dump of rules")
    return rules


class Reader:
    """Reads nf_tables. After an exception it must be closed and made anew."""

    def __init__(self) -> None:
        self._socket = GetSocket()
        self._words = self._socket.view.cast("I")

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()

    def generation(self) -> int:
        """The ruleset's generation: unchanged means that nothing was committed."""
        for kind, value in attributes(self._socket.one(Get.GENERATION, 0)):
            if kind == 1:
                return number(value)
        raise BrokenError("no generation in the kernel's answer")

    def tables(self) -> list[tuple[int, str]]:
        """(family, name) of each table."""
        return [
            (family, text(value))
            for family, _, payload in self._socket.dump(Get.TABLE, 0)
            for kind, value in attributes(payload)
            if kind == 1
        ]

    def chains(self) -> list[ChainHead]:
        """Every chain of every table. Raises InterruptedDumpError when a commit came between."""
        decoder = _ChainDecoder()
        return [decoder(family, payload) for family, _, payload in self._socket.dump(Get.CHAIN, 0)]

    def count_rules(self, family: int, table: str, chains: Iterable[str]) -> Iterator[int]:
        """The number of rules of each chain, 0 for one that is not there."""
        receive, words = self._socket.receive, self._words
        ask = self._socket.ask_by_name(Get.RULE, family, string_attribute(1, table), 2)
        for name in chains:
            ask(name)
            rules = 0
            while (more := tally(words, receive())) >= 0:
                rules += more
            yield rules

    def rules(self, family: int, table: str, chain: str) -> list[Rule]:
        """The rules of a chain, in order."""
        body = string_attribute(1, table) + string_attribute(2, chain)
        return [
            nft_rule.decode(payload) for _, _, payload in self._socket.dump(Get.RULE, family, body)
        ]

    def sets(self) -> list[SetHead]:
        """Every set and map of every table. Raises InterruptedDumpError."""
        return [set_head(family, payload) for family, _, payload in self._socket.dump(Get.SET, 0)]

    def elements(self, family: int, table: str, name: str) -> set[bytes]:
        """The keys of a set's or map's elements. Raises InterruptedDumpError."""
        body = string_attribute(1, table) + string_attribute(2, name)
        keys: set[bytes] = set()
        for _, _, payload in self._socket.dump(Get.SET_ELEMENTS, family, body):
            keys.update(element_keys(payload)[2])
        return keys
