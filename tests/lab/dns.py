"""A DNS server by UDP that knows a few names, and says of all others that there are none."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Self

Reply = Callable[[bytes], list[bytes]]
"""A query -> the datagrams that are sent for it."""


class DnsServer:
    """Answers in a thread of its own, as a context manager. Port 0 is any free one."""

    def __init__(self, reply: Reply, host: str = "127.0.0.1", port: int = 0) -> None:
        self._reply = reply
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, port))
        self.host, self.port = self._socket.getsockname()
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes the thread, which a close would not.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waking:
            waking.sendto(b"", (self.host, self.port))
        self._thread.join()
        self._socket.close()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            self.asked.append(query)
            for datagram in self._reply(query):
                self._socket.sendto(datagram, client)


def zone(names: Mapping[str, str]) -> Reply:
    """The reply of a server that knows the address of each of these names."""

    def reply(query: bytes) -> list[bytes]:
        address = names.get(question(query))
        if address is None:
            return [response(query, code=3)]
        packed = ipaddress.ip_address(address).packed
        return [response(query, record(1 if len(packed) == 4 else 28, packed))]

    return reply


def question(query: bytes) -> str:
    """The name that is asked for."""
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels)


def response(
    query: bytes, *records: bytes, code: int = 0, flags: int = 0x8180, number: int | None = None
) -> bytes:
    """A datagram that answers a query."""
    told = struct.unpack_from(">H", query)[0] if number is None else number
    return (
        struct.pack(">HHHHHH", told, flags | code, 1, len(records), 0, 0)
        + query[12:]
        + b"".join(records)
    )


def record(kind: int, data: bytes, name: bytes = b"\xc0\x0c") -> bytes:
    """A resource record; the name is by default the one that was asked for."""
    return name + struct.pack(">HHIH", kind, 1, 5, len(data)) + data
