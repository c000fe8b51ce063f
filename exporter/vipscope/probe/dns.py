"""One question to one DNS server, by UDP: what a pod would ask, wherever this runs.

The host's own resolver is not asked, because it is not the pods'. Format: RFC 1035, RFC 3596.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from vipscope.diagnosis.evidence import Answer
from vipscope.snapshot import BrokenError

TYPES: Final = {"A": 1, "AAAA": 28}
TIMEOUT: Final = 2.0
"""Seconds that an answer is waited for."""
ATTEMPTS: Final = 2
LONGEST: Final = 4096
"""Bytes of an answer; without EDNS a server sends at most 512."""
MOST_RECORDS: Final = 200

_HEADER = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_IS_RESPONSE, _TRUNCATED, _RECURSION_DESIRED = 0x8000, 0x0200, 0x0100
_INTERNET, _CNAME = 1, 5
_LONGEST_NAME = 255
_CODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")


async def ask(server: str, port: int, name: str, kind: str) -> Answer:
    """Ask for the addresses of `name`, of type A or AAAA.

    Raises TimeoutError, OSError, BrokenError for an answer that cannot be understood. What is no
    answer to this question, by its number or its text, is waited past.
    """
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        # Connected: so only this server's answers arrive, and its host's refusal does.
        await loop.sock_connect(sock, (server, port))
        for attempt in range(ATTEMPTS):
            number = secrets.randbelow(1 << 16)
            await loop.sock_sendall(sock, query(number, name, kind))
            try:
                async with asyncio.timeout(TIMEOUT):
                    while True:
                        answer = parse(await loop.sock_recv(sock, LONGEST), number, name, kind)
                        if answer is not None:
                            return answer
            except TimeoutError:
                if attempt + 1 == ATTEMPTS:
                    raise TimeoutError(f"no answer in {ATTEMPTS * TIMEOUT:g} s") from None
    raise AssertionError


def query(number: int, name: str, kind: str) -> bytes:
    """The message that asks. Raises ValueError for what is no name."""
    labels = name.rstrip(".").split(".")
    try:
        packed = b"".join(bytes([len(each)]) + each.encode("ascii") for each in labels) + b"\0"
    except ValueError:
        packed = b""
    if not packed or len(packed) > _LONGEST_NAME or not all(0 < len(each) < 64 for each in labels):
        raise ValueError(f"no name that DNS could be asked for: {name}")
    header = _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0)
    return header + packed + struct.pack(">HH", TYPES[kind], _INTERNET)


def parse(message: bytes, number: int, name: str, kind: str) -> Answer | None:
    """A datagram as the answer to a question; None when it is not one. Raises BrokenError."""
    if len(message) < _HEADER.size:
        return None
    told, flags, questions, records, _, _ = _HEADER.unpack_from(message)
    if told != number or not flags & _IS_RESPONSE or questions != 1:
        return None
    asked, offset = _name(message, _HEADER.size)
    if asked.lower() != name.rstrip(".").lower():
        return None
    if message[offset : offset + 4] != struct.pack(">HH", TYPES[kind], _INTERNET):
        return None
    code = flags & 0xF
    addresses, aliases = [], []
    for record in _records(message, offset + 4, min(records, MOST_RECORDS)):
        if record.kind == TYPES[kind]:
            addresses.append(_address(message, record))
        elif record.kind == _CNAME:
            aliases.append(_name(message, record.start)[0])
    if flags & _TRUNCATED and not addresses:
        raise BrokenError("the answer is too long for UDP")
    shown = _CODES[code] if code < len(_CODES) else str(code)
    return Answer(shown, tuple(addresses), tuple(aliases))


class _Record(NamedTuple):
    kind: int
    start: int
    """Where its data begins in the message."""
    length: int


def _records(message: bytes, offset: int, count: int) -> Iterator[_Record]:
    for _ in range(count):
        _, offset = _name(message, offset)
        if offset + _RECORD.size > len(message):
            raise BrokenError("a DNS answer that is cut off")
        kind, group, _, length = _RECORD.unpack_from(message, offset)
        offset += _RECORD.size
        if offset + length > len(message):
            raise BrokenError("a DNS answer that is cut off")
        if group == _INTERNET:
            yield _Record(kind, offset, length)
        offset += length


def _address(message: bytes, record: _Record) -> str:
    family, size = (socket.AF_INET, 4) if record.kind == TYPES["A"] else (socket.AF_INET6, 16)
    if record.length != size:
        raise BrokenError(f"an address of {record.length} bytes in a DNS answer")
    return socket.inet_ntop(family, message[record.start : record.start + size])


def _name(message: bytes, offset: int) -> tuple[str, int]:
    """(the name at an offset, where what follows it begins). Raises BrokenError.

    A pointer may only lead back, to before where the part that has it began: so there is no loop.
    """
    labels: list[str] = []
    behind, bound, length = 0, offset, 0
    while True:
        if offset >= len(message):
            raise BrokenError("a name in a DNS answer is cut off")
        size = message[offset]
        if size & 0xC0 == 0xC0:
            if offset + 2 > len(message):
                raise BrokenError("a name in a DNS answer is cut off")
            target = (size & 0x3F) << 8 | message[offset + 1]
            behind = behind or offset + 2
            if target >= bound:
                raise BrokenError("a name in a DNS answer that points forwards")
            offset = bound = target
            continue
        if size & 0xC0:
            raise BrokenError("a label of unknown type in a DNS answer")
        offset += 1
        if not size:
            return ".".join(labels), behind or offset
        label = message[offset : offset + size]
        length += size + 1
        if len(label) != size or length > _LONGEST_NAME:
            raise BrokenError("a name in a DNS answer is cut off or too long")
        labels.append(label.decode("ascii", "backslashreplace"))
        offset += size
