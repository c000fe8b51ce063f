"""The kernel's notifications of what was committed to nf_tables, by whom.

Every change is a message of the multicast group NFNLGRP_NFTABLES; the message NEWGEN closes a
transaction and names the process that made it.
"""

from __future__ import annotations

import enum
import errno
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vipscope.netlink.nf_tables import ChainHead, SetHead, chain_head, element_keys, set_head
from vipscope.netlink.nfnetlink import (
    HEADER,
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_NETFILTER,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
    attributes,
    number,
    text,
)
from vipscope.netlink.nft_order import HANDLE, RuleOrder
from vipscope.snapshot import BrokenError, DeniedError

GROUP_NFTABLES = 7
SUBSYSTEM = 10
DATAGRAM = 65536
"""Bytes; the kernel packs notifications into datagrams of a page or two."""
BUFFER = 4 * DATAGRAM
"""Bytes that are received before they are looked at."""


class Message(enum.IntEnum):
    """The notifications that matter here (NFT_MSG_*)."""

    NEW_TABLE = 0
    DELETE_TABLE = 2
    NEW_CHAIN = 3
    DELETE_CHAIN = 5
    NEW_RULE = 6
    DELETE_RULE = 8
    NEW_SET = 9
    DELETE_SET = 11
    NEW_ELEMENTS = 12
    DELETE_ELEMENTS = 14
    NEW_GENERATION = 15


OBJECTS = {
    Message.NEW_CHAIN: ("chain", "add"),
    Message.DELETE_CHAIN: ("chain", "delete"),
    Message.NEW_RULE: ("rule", "add"),
    Message.DELETE_RULE: ("rule", "delete"),
    Message.NEW_SET: ("set", "add"),
    Message.DELETE_SET: ("set", "delete"),
    Message.NEW_ELEMENTS: ("element", "add"),
    Message.DELETE_ELEMENTS: ("element", "delete"),
}
"""Message -> (object, op) as vipscope_ruleset_changes_total counts it."""


class TableChange(NamedTuple):
    """A table came or went."""

    added: bool
    family: int
    table: str


class ChainChange(NamedTuple):
    """A chain came, was altered, or went."""

    added: bool
    chain: ChainHead


class SetChange(NamedTuple):
    """A set or map came or went."""

    added: bool
    set: SetHead


class ElementChange(NamedTuple):
    """Elements of a set or map came or went."""

    added: bool
    family: int
    table: str
    set: str
    keys: list[bytes]


class Commit(NamedTuple):
    """The end of a transaction."""

    generation: int
    process: str
    """The writer's name as the kernel knows it (comm); it may hold any bytes but 0."""


Change = TableChange | ChainChange | SetChange | ElementChange


@dataclass(slots=True)
class Notified:
    """What a series of datagrams has told."""

    orders: Mapping[tuple[int, str, str], RuleOrder] = field(default_factory=dict)
    """(family, table, chain) -> where to put rules that come, and take those from that go."""
    changes: list[Change] = field(default_factory=list)
    """In the order in which the kernel made them. Rules are not among them:"""
    rules_changed: set[tuple[int, str, str]] = field(default_factory=set)
    """(family, table, chain) in which rules came or went."""
    followed: set[tuple[int, str, str]] = field(default_factory=set)
    """Those of them whose order was told of each rule."""
    commits: list[Commit] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(object, op) -> changes."""
    last_chain: bytes = b""
    """What the last rule's message says from the family on until its handle, as it stands."""
    last_order: RuleOrder | None = None
    """The order of its chain."""


_LENGTH_KIND = struct.Struct("=IH").unpack_from
_NEW_RULE = SUBSYSTEM << 8 | Message.NEW_RULE
_RULES = (_NEW_RULE, SUBSYSTEM << 8 | Message.DELETE_RULE)
_HEAD = 8
"""Bytes that say a message's length, type and flags."""
_FAMILY = 16
"""Where a message says the family."""


def read_datagram(data: bytes, into: Notified) -> None:
    """Add what one or more datagrams tell. Raises BrokenError on a length that lies."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < HEADER:
            raise BrokenError(f"notification cut off after {end - offset} bytes")
        length, kind = _LENGTH_KIND(data, offset)
        if length < HEADER or length & 3 or offset + length > end:
            raise BrokenError(f"notification of {length} bytes where {end - offset} are left")
        if kind in _RULES:
            offset = _take_rules(data, offset, length, kind, into)
            continue
        if kind >> 8 == SUBSYSTEM:
            payload = memoryview(data)[offset + HEADER : offset + length]
            _read_change(kind & 0xFF, data[offset + _FAMILY], payload, into)
        offset += length


def _take_rules(data: bytes, offset: int, length: int, kind: int, into: Notified) -> int:
    """Take the rules of one chain that are told of from `offset` on; where what follows begins.

    A partial synchronisation of kube-proxy at 5,000 Services is 10,000 messages on rules of one
    chain, nearly all equally long. So those that are as long as the first are taken all at once.
    """
    same = into.last_chain
    if not same or not data.startswith(same, offset + _FAMILY):
        same = _chain_of_rule(data, offset, length, into)
    head = data[offset : offset + _HEAD]
    end = offset + length
    while data.startswith(head, end) and data.startswith(same, end + _FAMILY):
        end += length
    if end > len(data):
        end -= length  # the last one is cut off
    if into.last_order is not None:
        run = memoryview(data)[offset:end]
        at = _FAMILY + len(same)
        if kind == _NEW_RULE:
            into.last_order.add(run, length, at)
        else:
            into.last_order.delete(run, length, at)
    into.counts[OBJECTS[Message(kind & 0xFF)]] += (end - offset) // length
    return end


def _chain_of_rule(data: bytes, offset: int, length: int, into: Notified) -> bytes:
    """Note a rule's chain; the bytes from the family on that another rule of this chain shares."""
    payload = memoryview(data)[offset + HEADER : offset + length]
    table = chain = ""
    used = 0
    for kind, value in attributes(payload):
        if kind == 1:
            table = text(value)
        elif kind == 2:
            chain = text(value)
        else:
            break
        used += (len(value) + 4 + 3) & ~3
    if not table or not chain:
        raise BrokenError("notification of a rule without table or chain")
    key = data[offset + _FAMILY], table, chain
    into.rules_changed.add(key)
    same = data[offset + _FAMILY : offset + HEADER + used + len(HANDLE)]
    order = into.orders.get(key)
    if order is not None:
        into.followed.add(key)
        if not same.endswith(HANDLE):
            order.lose()
    into.last_chain, into.last_order = same, order
    return same


def _read_change(kind: int, family: int, payload: memoryview, into: Notified) -> None:
    match kind:
        case Message.NEW_TABLE | Message.DELETE_TABLE:
            names = [text(value) for which, value in attributes(payload) if which == 1]
            if not names:
                raise BrokenError("notification of a table without a name")
            into.changes.append(TableChange(kind == Message.NEW_TABLE, family, names[0]))
        case Message.NEW_CHAIN | Message.DELETE_CHAIN:
            chain = chain_head(family, payload)
            into.changes.append(ChainChange(kind == Message.NEW_CHAIN, chain))
            into.counts[OBJECTS[Message(kind)]] += 1
        case Message.NEW_SET | Message.DELETE_SET:
            into.changes.append(SetChange(kind == Message.NEW_SET, set_head(family, payload)))
            into.counts[OBJECTS[Message(kind)]] += 1
        case Message.NEW_ELEMENTS | Message.DELETE_ELEMENTS:
            table, name, keys = element_keys(payload)
            added = kind == Message.NEW_ELEMENTS
            into.changes.append(ElementChange(added, family, table, name, keys))
            into.counts[OBJECTS[Message(kind)]] += len(keys)
        case Message.NEW_GENERATION:
            into.commits.append(_commit(payload))
            for order in into.orders.values():
                order.commit()
        case _:
            pass  # objects, flowtables, traces: nothing that is counted


def _commit(payload: memoryview) -> Commit:
    generation, process = None, ""
    for kind, value in attributes(payload):
        if kind == 1:
            generation = number(value)
        elif kind == 3:
            process = bytes(value).rstrip(b"\0").decode("utf-8", "backslashreplace")
    if generation is None:
        raise BrokenError("notification of a commit without its generation")
    return Commit(generation, process)


class OverrunError(Exception):
    """The receive buffer was too small for what came at once: notifications are lost."""


class Listener:
    """Receives notifications. Opening one raises DeniedError without NET_ADMIN.

    After an OverrunError it must be closed and made anew, and everything read again.
    """

    def __init__(self, receive_buffer: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            NETLINK_NETFILTER,
        )
        # An unbound socket has port 0, which is the kernel's own, and a sender never hears itself.
        self._socket.bind((0, 0))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, GROUP_NFTABLES)
        except PermissionError as error:
            self._socket.close()
            raise DeniedError(f"{error.strerror}: needs NET_ADMIN") from None
        self._buffer = bytearray(BUFFER)

    def fileno(self) -> int:
        """For the event loop to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()

    def datagrams(self) -> Iterator[bytes]:
        """What has come, without waiting, many datagrams at once.

        Raises OverrunError once something was lost.
        """
        receive, view, filled, lost = self._socket.recv_into, memoryview(self._buffer), 0, False
        while True:
            try:
                length = receive(view[filled:], 0, socket.MSG_TRUNC)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                break
            if length > DATAGRAM:
                lost = True
                break
            filled += length
            if filled > BUFFER - DATAGRAM:
                yield bytes(view[:filled])
                filled = 0
        if filled:
            yield bytes(view[:filled])
        if lost:
            raise OverrunError
