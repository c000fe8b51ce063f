"""The socket to the kernel's netfilter subsystems, and the messages on it.

A request is made of a `Get` and attributes; there is no other way to put bytes on the socket, so
what goes to the kernel can only be a question. Formats: linux/netlink.h,
linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import array
import enum
import errno
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from vipscope.snapshot import AbsentError, BrokenError, DeniedError

NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33

NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_DUMP = 0x300
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR = 2
NLMSG_DONE = 3

HEADER = 20
"""Bytes of a netlink header and the nfgenmsg (family, version, resource) after it."""
ATTRIBUTE_TYPE = 0x3FFF
"""Without the flags for nested and big-endian attributes."""
BUFFER = 32768
"""The kernel fills at most 32 KiB of a dump at once; a smaller buffer would mean more calls."""
RECEIVE_TIMEOUT = 5
"""Seconds; the kernel answers a dump while it is asked, so silence means something is wrong."""
SILENT = f"no answer from the kernel in {RECEIVE_TIMEOUT} s"

_LAST = (NLMSG_ERROR, NLMSG_DONE)
"""Types of message that end an answer, with the error's number behind the header."""

_DONE = struct.pack("=IH", HEADER, NLMSG_DONE)
"""How the message begins that ends a dump: its header and an error number are all of it."""
_ERROR = struct.pack("=H", NLMSG_ERROR)
_MAY_GO_ON = 2048
"""Bytes of a datagram above which more of its dump may follow, because the next object did not fit
in: into BUFFER, or into a page, less its administration, while the kernel has no larger one."""
_QUIET = 0x01010101
"""The sequence number of a dump whose end is not told. It is the same in each byte order."""

_MESSAGE = struct.Struct("=IHHIIBBH")
_LENGTH_TYPE = struct.Struct("=HH")

# What the kernel keeps from a socket: the end of a quiet dump, if it ended without an error.
# Classic BPF of linux/filter.h: code, instructions to skip if true, if false, operand.
_FILTER = array.array("Q")
for _instruction in (
    (0x20, 0, 0, 8),  # load the sequence number, in network byte order
    (0x15, 0, 5, _QUIET),  # is it this?
    (0x28, 0, 0, 4),  # load the type
    (0x15, 0, 3, socket.htons(NLMSG_DONE)),
    (0x20, 0, 0, 16),  # load the error number
    (0x15, 0, 1, 0),
    (0x06, 0, 0, 0),  # let nothing of the datagram through
    (0x06, 0, 0, 0xFFFFFFFF),  # let all of it through
):
    _FILTER.frombytes(struct.pack("=HBBI", *_instruction))


class Get(enum.IntEnum):
    """All that can be asked: GET messages.

    Formats: linux/netfilter/nfnetlink_conntrack.h, linux/netfilter/nf_tables.h.
    """

    CONNTRACK = 1 << 8 | 1
    """To read and reset counters is another message."""
    TABLE = 10 << 8 | 1
    CHAIN = 10 << 8 | 4
    RULE = 10 << 8 | 7
    SET = 10 << 8 | 10
    SET_ELEMENTS = 10 << 8 | 13
    GENERATION = 10 << 8 | 16


class GoneError(BrokenError):
    """What was asked for does not exist, or no longer. There is nothing more to the answer."""


class BusyError(BrokenError):
    """A dump was asked for while the one before it was not over."""


class InterruptedDumpError(Exception):
    """The ruleset changed during a dump, which may have missed or repeated something."""


def present(procfs: Path, module: str, symbol: str) -> bool:
    """Whether the kernel has a part of netfilter now: its module, or a function of it built in.

    Must be asked first: a message to a subsystem that is not there makes the kernel load its
    module.
    """
    try:
        modules = (procfs / "modules").read_text()
    except FileNotFoundError:
        return True  # A kernel that cannot load modules cannot be made to.
    if re.search(rf"^{module} ", modules, re.MULTILINE):
        return True
    # Built in? Then its symbols are in kallsyms, without the name of a module behind them.
    with (procfs / "kallsyms").open() as symbols:
        return any(line.endswith(f" {symbol}\n") for line in symbols)


def attribute(kind: int, data: bytes) -> bytes:
    """A netlink attribute, padded."""
    return _LENGTH_TYPE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def string_attribute(kind: int, value: str) -> bytes:
    """A zero-terminated string as a netlink attribute, padded."""
    return attribute(kind, value.encode("utf-8", "surrogateescape") + b"\0")


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, payload) of each attribute in a payload. Raises BrokenError on a length that lies."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _LENGTH_TYPE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise BrokenError(f"netlink attribute of {length} bytes where {end - offset} are left")
        yield kind & ATTRIBUTE_TYPE, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def text(payload: memoryview) -> str:
    """A string attribute's value. Bytes that are no UTF-8 survive a round trip to the kernel."""
    return bytes(payload).partition(b"\0")[0].decode("utf-8", "surrogateescape")


def number(payload: memoryview) -> int:
    """An unsigned big-endian number of 1 to 8 bytes."""
    return int.from_bytes(payload, "big")


def messages(data: memoryview) -> Iterator[tuple[int, int, int, int, memoryview]]:
    """(type, flags, family, resource, attributes) of each message in a datagram.

    Raises BrokenError on a length that lies, and what `check_error` raises for an error message.
    """
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < HEADER:
            raise BrokenError(f"netlink message cut off after {end - offset} bytes")
        length, kind, flags, _, _, family, _, resource = _MESSAGE.unpack_from(data, offset)
        if length < HEADER or offset + length > end:
            raise BrokenError(f"netlink message of {length} bytes where {end - offset} are left")
        if kind in _LAST:
            check_error(data[offset : offset + length])
        yield kind, flags, family, socket.ntohs(resource), data[offset + HEADER : offset + length]
        offset += (length + 3) & ~3


def check_error(message: memoryview) -> None:
    """Raise what an NLMSG_ERROR or NLMSG_DONE message says; 0 and above is no error."""
    code = -struct.unpack_from("=i", message, 16)[0]
    if code <= 0:
        return
    reason = os.strerror(code)
    if code in (errno.EPERM, errno.EACCES):
        raise DeniedError(f"{reason}: needs NET_ADMIN")
    if code in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
        raise AbsentError(f"the kernel knows no such request: {reason}")
    if code == errno.EINTR:
        raise InterruptedDumpError(reason)
    if code == errno.ENOENT:
        raise GoneError(f"the kernel answered: {reason}")
    if code == errno.EBUSY:
        raise BusyError(f"the kernel answered: {reason}")
    raise BrokenError(f"the kernel answered: {reason}")


def tally(words: memoryview, halves: memoryview, length: int, kind: int) -> int:
    """Messages in a datagram of `length` bytes, seen as 32-bit and 16-bit words.

    Raises BrokenError when one is of another type than `kind`, or of a length that lies, and what
    `check_error` raises for an error message.
    """
    if length > BUFFER:
        raise BrokenError(f"netlink datagram of {length} bytes, at most {BUFFER} were expected")
    size, alike = words[0], words[1]
    if halves[2] != kind or size < HEADER or size & 3:
        return _one_by_one(words, length, kind)
    # One look at the type and flags of the others: only in an interrupted dump they differ.
    count, offset, end = 1, size >> 2, length >> 2
    while offset < end:
        size = words[offset]
        if size < HEADER or size & 3 or words[offset + 1] != alike:
            return _one_by_one(words, length, kind)
        offset += size >> 2
        count += 1
    if offset != end or length & 3:
        return _one_by_one(words, length, kind)
    return count


def _one_by_one(words: memoryview, length: int, kind: int) -> int:
    """The same of a datagram whose messages are not all alike."""
    count = 0
    for each, _, _, _, _ in messages(words.cast("B")[:length]):
        if each != kind:
            raise BrokenError(f"netlink message of type {each:#x} where {kind:#x} was asked for")
        count += 1
    return count


def quieten(sock: socket.socket) -> None:
    """Have the kernel keep from a socket what ends a quiet dump."""
    address, instructions = _FILTER.buffer_info()
    program = struct.pack("@HP", instructions, address)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class GetSocket:
    """Asks, and reads the answers. After an exception it must be closed: answers may be pending."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        # Not settimeout(), which would cost a poll() for every recv().
        timeout = struct.pack("@ll", RECEIVE_TIMEOUT, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        quieten(self._socket)
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()

    def ask(self, get: Get, family: int, body: bytes = b"", *, dump: bool) -> None:
        """Send a request: the family, and attributes that narrow it down."""
        flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
        self._socket.send(
            _MESSAGE.pack(HEADER + len(body), Get(get), flags, 0, 0, family, 0, 0) + body
        )

    def receive(self) -> int:
        """Fill `buffer` with the next datagram; its length in bytes."""
        try:
            length = self._socket.recv_into(self.buffer, 0, socket.MSG_TRUNC)
        except BlockingIOError:
            raise BrokenError(SILENT) from None
        if length > BUFFER:
            raise BrokenError(f"netlink datagram of {length} bytes, at most {BUFFER} were expected")
        return length

    def receive_all(self) -> list[memoryview]:
        """Datagrams, up to one that seems to end a dump.

        For a long list, which the kernel walks from its start for every datagram: that takes little
        more than half the time while nothing else pushes the list out of the CPU's cache.
        """
        datagrams = []
        while True:
            datagram = memoryview(bytes(self.view[: self.receive()]))
            datagrams.append(datagram)
            refused = datagram[4:6] == _ERROR
            if refused or datagram[-HEADER:][: len(_DONE)] == _DONE:
                return datagrams

    def dump(
        self, get: Get, family: int, body: bytes = b""
    ) -> Iterator[tuple[int, int, memoryview]]:
        """(family, resource, attributes) of each object.

        The payload is only valid until the next one is asked for. Raises InterruptedDumpError when
        the ruleset changed meanwhile, once all objects were read.
        """
        self.ask(get, family, body, dump=True)
        interrupted = False
        while True:
            length = self.receive()
            for kind, flags, of, resource, payload in messages(self.view[:length]):
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_DONE:
                    if interrupted:
                        raise InterruptedDumpError
                    return
                yield of, resource, payload

    def count(
        self, get: Get, family: int, body: bytes, kind: int, names: Iterable[str]
    ) -> list[int]:
        """The number of objects in each of many dumps that differ by a last string attribute only.

        The one loop over every rule of a node: 70,000 requests at 205,000 rules. So what does not
        differ is packed once a length of name, of an answer only lengths and types are looked at,
        and its end is not read: the kernel answers while it is asked, so what is not there then is
        not. Were a small datagram not all, or one lost, the kernel would refuse the next dump,
        which is a BusyError. For the former that takes an object of 30 KiB, or one that is added
        in the microseconds between a question and its answer. To be called after any other
        question, by whose answer the kernel has seen how much may come at once.
        """
        get, flags = Get(get), NLM_F_REQUEST | NLM_F_DUMP
        new = get - 1  # the type of what is dumped
        send, receive, buffer = self._socket.send, self._socket.recv_into, self.buffer
        words, halves = self.view.cast("I"), self.view.cast("H")
        at_once = int(socket.MSG_TRUNC | socket.MSG_DONTWAIT)
        packed: dict[int, tuple[bytes, bytes]] = {}
        counts = []
        for name in names:
            data = name.encode("utf-8", "surrogateescape")
            parts = packed.get(len(data))
            if parts is None:
                last = string_attribute(kind, "x" * len(data))
                size = HEADER + len(body) + len(last)
                head = _MESSAGE.pack(size, get, flags, _QUIET, 0, family, 0, 0)
                parts = packed[len(data)] = (head + body + last[:4], last[4 + len(data) :])
            send(parts[0] + data + parts[1])
            objects, length = 0, BUFFER
            while length > _MAY_GO_ON:
                try:
                    length = receive(buffer, 0, at_once)
                except BlockingIOError:
                    break
                objects += tally(words, halves, length, new)
            counts.append(objects)
        for _ in self.dump(Get.TABLE, family):
            pass  # refused if the last of them is not over
        return counts

    def one(self, get: Get, family: int, body: bytes = b"") -> memoryview:
        """The attributes of the one message that answers."""
        self.ask(get, family, body, dump=False)
        for _, _, _, _, payload in messages(self.view[: self.receive()]):
            return payload
        raise BrokenError("empty answer from the kernel")
