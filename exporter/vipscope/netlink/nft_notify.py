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
from collections.abc import Iterator
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
from vipscope.snapshot import BrokenError, DeniedError

GROUP_NFTABLES = 7
SUBSYSTEM = 10
DATAGRAM = 65536
"""Bytes; the kernel packs notifications into datagrams of a page or two."""


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

    changes: list[Change] = field(default_factory=list)
    """In the order in which the kernel made them. Rules are not among them:"""
    rules_changed: set[tuple[int, str, str]] = field(default_factory=set)
    """(family, table, chain) in which rules came or went."""
    commits: list[Commit] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(object, op) -> changes."""
    last_chain: bytes = b""
    """What the last rule's message says of family, generation, table and chain, as it stands."""


_LENGTH_KIND = struct.Struct("=IH").unpack_from


def read_datagram(data: bytes, into: Notified) -> None:
    """Add what a datagram tells. Raises BrokenError on a length that lies.

    A partial synchronisation of kube-proxy at 5,000 Services is 10,000 messages on rules, each
    after one on the same chain. So a rule is only compared with the last one's table and chain.
    """
    offset, end = 0, len(data)
    same = into.last_chain
    same_length = len(same)
    added = deleted = 0
    while offset < end:
        if end - offset < HEADER:
            raise BrokenError(f"notification cut off after {end - offset} bytes")
        length, kind = _LENGTH_KIND(data, offset)
        if length < HEADER or offset + length > end:
            raise BrokenError(f"notification of {length} bytes where {end - offset} are left")
        if kind >> 8 == SUBSYSTEM:
            kind &= 0xFF
            if kind in (Message.NEW_RULE, Message.DELETE_RULE):
                if kind == Message.NEW_RULE:
                    added += 1
                else:
                    deleted += 1
                if not same_length or data[offset + 16 : offset + 16 + same_length] != same:
                    same = into.last_chain = _chain_of_rule(data, offset, length, into)
                    same_length = len(same)
            else:
                payload = memoryview(data)[offset + HEADER : offset + length]
                _read_change(kind, data[offset + 16], payload, into)
        offset += (length + 3) & ~3
    if added:
        into.counts["rule", "add"] += added
    if deleted:
        into.counts["rule", "delete"] += deleted


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
    into.rules_changed.add((data[offset + 16], table, chain))
    return data[offset + 16 : offset + HEADER + used]


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
        self._buffer = bytearray(DATAGRAM)

    def fileno(self) -> int:
        """For the event loop to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()

    def datagrams(self) -> Iterator[bytes]:
        """What has come, without waiting. Raises OverrunError once something was lost."""
        view = memoryview(self._buffer)
        while True:
            try:
                length = self._socket.recv_into(self._buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise OverrunError from None
                raise
            if length > DATAGRAM:
                raise OverrunError
            yield bytes(view[:length])
