"""Reading nf_tables: tables, chains, rules, sets, and the notifications of what changed.

One dump per chain: a dump of all rules at once is quadratic in the kernel, which walks its list
from the start for every 32 KiB. Formats: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vipscope.dataplane.programmed import ProxyRule
from vipscope.dataplane.traffic import CountedRule
from vipscope.netlink import nfnetlink, nft_program
from vipscope.netlink.nfnetlink import (
    HEADER,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLMSG_DONE,
    BusyError,
    Get,
    GetSocket,
    GoneError,
    InterruptedDumpError,
    attributes,
    messages,
    number,
    string_attribute,
    text,
)
from vipscope.netlink.nft_order import HANDLE, RuleOrder
from vipscope.snapshot import BrokenError

FAMILIES = {1: "inet", 2: "ipv4", 3: "arp", 5: "netdev", 7: "bridge", 10: "ipv6"}
"""NFPROTO_* -> label."""
PREROUTING = 0
"""NF_INET_PRE_ROUTING, a base chain's hook."""

SET_ANONYMOUS = 0x1
SET_TIMEOUT = 0x10
SET_EVAL = 0x20
ELEMENT_INTERVAL_END = 0x1


def present(procfs: Path) -> bool:
    """Whether the kernel has nf_tables now. Must be asked first, as `nfnetlink.present` says."""
    return nfnetlink.present(procfs, "nf_tables", "nf_tables_getgen")


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


class ChainRun(NamedTuple):
    """Chains of one table, none of them a base chain."""

    family: int
    table: str
    names: list[str]
    newest: int
    """The highest of their handles."""


class ChainLayout(NamedTuple):
    """What the message of a chain that is no base chain looks like."""

    message: re.Pattern[bytes]
    """All of it, with name and handle as groups. Any other sender, generation and use fit."""
    size: int
    """Its bytes."""
    family: int
    table: str


_TABLE_NAME_HANDLE_USE = [1, 3, 2, 6]


def chain_layout(chain: ChainHead, payload: memoryview) -> ChainLayout | None:
    """The layout of a chain's message, if it is the kernel's usual one."""
    parts = list(attributes(payload))
    if [kind for kind, _ in parts] != _TABLE_NAME_HANDLE_USE:
        return None
    table, name = parts[0][1], parts[1][1]
    start = 4 + (len(table) + 3 & ~3) + 4  # of the name in the payload
    middle = start + (len(name) + 3 & ~3)
    size = HEADER + len(payload)
    pattern = b"%b.{8}%b..%b([^\\0]{%d})\\0.{%d}%b(.{8})%b.{4}" % (
        re.escape(struct.pack("=IHH", size, Get.CHAIN - 1, NLM_F_MULTI)),
        re.escape(struct.pack("=BB", chain.family, 0)),
        re.escape(bytes(payload[:start])),
        len(name) - 1,
        middle - start - len(name),
        re.escape(bytes(payload[middle : middle + 4])),
        re.escape(bytes(payload[middle + 12 : middle + 16])),
    )
    return ChainLayout(re.compile(pattern, re.DOTALL), size, chain.family, chain.table)


def chain_run(datagram: memoryview, layout: ChainLayout) -> ChainRun | None:
    """All chains of a datagram at once, if they are all of one layout, as nearly all are.

    A node of 205,000 rules has 70,000 chains whose messages differ in name and numbers only.
    """
    found = layout.message.findall(datagram)
    if not found or len(found) * layout.size != len(datagram):
        return None
    names, handles = zip(*found, strict=True)
    texts = str(b"\0".join(names), "utf-8", "surrogateescape").split("\0")
    # Big-endian numbers sort as their bytes do.
    newest = int.from_bytes(max(handles), "big")
    return ChainRun(layout.family, layout.table, texts, newest)


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


class Reader:
    """Reads nf_tables. After an exception it must be closed and made anew."""

    def __init__(self) -> None:
        self._socket = GetSocket()

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

    def chains(self) -> Iterator[ChainHead | ChainRun]:
        """Every chain of every table, base chains one by one.

        Raises InterruptedDumpError, at the end, when a commit came between.
        """
        layout: ChainLayout | None = None
        interrupted = False
        self._socket.ask(Get.CHAIN, 0, dump=True)
        while True:
            for datagram in self._socket.receive_all():
                run = chain_run(datagram, layout) if layout else None
                if run is not None:
                    yield run
                    continue
                head: ChainHead | None = None
                for kind, flags, family, _, payload in messages(datagram):
                    interrupted |= bool(flags & NLM_F_DUMP_INTR)
                    if kind == NLMSG_DONE:
                        if interrupted:
                            raise InterruptedDumpError
                        return
                    head = chain_head(family, payload)
                    yield head
                # That of the last, with whose like the next datagram may go on.
                layout = chain_layout(head, payload) if head else None

    def has_chain(self, family: int, table: str, chain: str) -> bool:
        """Whether there is such a chain."""
        body = string_attribute(1, table) + string_attribute(3, chain)
        try:
            self._socket.one(Get.CHAIN, family, body)
        except GoneError:
            return False
        return True

    def count_rules(self, family: int, table: str, chains: Iterable[str]) -> list[int]:
        """The number of rules of each chain, 0 for one that is not there.

        Raises InterruptedDumpError when a rule was added to one while it was told.
        """
        body = string_attribute(1, table)
        before = self.generation()  # it also makes known how much may come at once
        try:
            return self._socket.count(Get.RULE, family, body, 2, chains)
        except BusyError:
            with contextlib.closing(Reader()) as other:  # for here answers are pending
                if other.generation() != before:
                    raise InterruptedDumpError from None
            raise

    def rules(self, family: int, table: str, chain: str) -> RuleOrder:
        """The rules of a chain, in order; none where it is not there."""
        body = string_attribute(1, table) + string_attribute(2, chain)
        order = RuleOrder()
        for _, _, payload in self._socket.dump(Get.RULE, family, body):
            # An answer names table and chain as the question does, and then the handle.
            order.read(payload, len(body) + len(HANDLE))
        return order

    def proxy_rules(
        self, decoder: nft_program.Decoder, family: int, table: str, chain: str
    ) -> list[ProxyRule]:
        """Where the rules of a chain lead; none where it is not there."""
        body = string_attribute(1, table) + string_attribute(2, chain)
        dump = self._socket.dump(Get.RULE, family, body)
        return [decoder.decode(payload) for _, _, payload in dump]

    def counted_rules(
        self, decoder: nft_program.Decoder, family: int, table: str, chain: str
    ) -> list[CountedRule]:
        """Those rules of a chain that have a packet counter. Raises InterruptedDumpError."""
        body = string_attribute(1, table) + string_attribute(2, chain)
        dump = self._socket.dump(Get.RULE, family, body)
        rules = [decoder.counted(payload) for _, _, payload in dump]
        return [each for each in rules if each is not None]

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

    def map_elements(self, family: int, table: str, name: str) -> list[nft_program.Element]:
        """A set's or map's elements with what they lead to.

        Raises InterruptedDumpError, GoneError when there is no such set.
        """
        body = string_attribute(1, table) + string_attribute(2, name)
        return [
            element
            for _, _, payload in self._socket.dump(Get.SET_ELEMENTS, family, body)
            for element in nft_program.elements(payload)
        ]
