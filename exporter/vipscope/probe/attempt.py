"""One connection of the prober, as a generator that says what it waits for.

An attempt yields the events for which its socket is to be polled, and is resumed when there are
any. It returns what it measured; it raises FailedError or OSError. Nothing here waits by itself.

Latency is taken as near the kernel as can be without a change of the node's state. A handshake is
timed by the kernel, from the first SYN to the SYN-ACK (TCP_INFO), so that no wake-up of this thread
and no other thread's turn is in it. Only where a SYN had to be sent again does the clock of this
thread count, for the kernel then times the last one alone. Answers are timed by that clock:
receive timestamps would have the kernel stamp every packet of the node for as long.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple

from vipscope.probe import dns
from vipscope.settings import Address, ProbeTarget
from vipscope.snapshot import BrokenError

STATUS_LINE_LIMIT = 256
"""Bytes of an HTTP answer that are read. A status line has some 15."""
USER_AGENT = "vipscope"

RESET_AT_CLOSE = struct.pack("=ii", 1, 0)
"""struct linger. close() then sends RST in place of FIN: neither end keeps the connection in
TIME_WAIT, and conntrack and IPVS forget it after 10 s and not 120 s. So however often it probes,
the prober uses up neither local ports nor the tables that it watches."""

REASONS: Mapping[str, tuple[str, ...]] = {
    "tcp": ("refused", "timeout", "reset", "unreachable"),
    "http": ("refused", "timeout", "reset", "unreachable", "http"),
    "dns": ("refused", "timeout", "reset", "unreachable", "dns"),
}
"""Kind of probe -> how it can fail."""

_REASON_OF_ERROR = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timeout",
}

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?\r?\n")
_TCP_INFO_SIZE = 152
"""As much of struct tcp_info as is read here. Linux has had all of it since 4.6."""
_TCP_INFO_UNANSWERED = 24
"""Offset of tcpi_unacked: segments."""
_TCP_INFO_RTT = 68
"""Offset of tcpi_rtt: microseconds."""
_TCP_INFO_RETRANSMITS = 100
"""Offset of tcpi_total_retrans."""
_TCP_INFO_LEAST_RTT = 148
"""Offset of tcpi_min_rtt: microseconds."""


class FailedError(Exception):
    """The other side answered, but not as it should. The text is the reason, one of REASONS."""


class Measured(NamedTuple):
    """What an attempt took, in seconds."""

    duration: float
    """TCP: until the connection stood. HTTP: that, and from the request to the status line. DNS:
    from the query to the answer."""
    handshake: float | None = None
    """Until the TCP connection stood, None without one."""


Attempt = Generator[int, None, Measured]


def begin(target: ProbeTarget, address: Address) -> tuple[socket.socket, Attempt]:
    """A socket and the attempt that will use it. Raises OSError when there is no socket to get."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    kind = socket.SOCK_DGRAM if target.kind == "dns" else socket.SOCK_STREAM
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if kind == socket.SOCK_STREAM:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    return made, _ATTEMPTS[target.kind](made, target, address)


def reason(error: Exception) -> str:
    """Why an attempt failed that raised this."""
    if isinstance(error, FailedError):
        return str(error)
    number = error.errno if isinstance(error, OSError) else None
    # What is left tells of the way: no route, prohibited, dropped on the way out, no port left.
    return _REASON_OF_ERROR.get(number or 0, "unreachable")


def _tcp(made: socket.socket, _: ProbeTarget, address: Address) -> Attempt:
    handshake = yield from _handshake(made, address)
    return Measured(handshake, handshake)


def _http(made: socket.socket, target: ProbeTarget, address: Address) -> Attempt:
    handshake = yield from _handshake(made, address)
    request = (
        f"GET {target.detail} HTTP/1.1\r\nHost: {target.vip}\r\nUser-Agent: {USER_AGENT}\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    )
    asked = time.monotonic()
    made.send(request.encode("ascii"))  # a new connection's send buffer takes it whole
    answer = b""
    while b"\n" not in answer:
        received = yield from _receive(made, STATUS_LINE_LIMIT - len(answer))
        if not received:  # closed, or too long a line
            raise FailedError("http")
        answer += received
    answered = time.monotonic()
    status = _STATUS_LINE.match(answer)
    if status is None or not 200 <= int(status[1]) < 400:
        raise FailedError("http")
    # What this thread took between the two is not the Service's.
    return Measured(handshake + answered - asked, handshake)


def _dns(made: socket.socket, target: ProbeTarget, address: Address) -> Attempt:
    number = secrets.randbelow(1 << 16)
    query = dns.query(number, target.detail, "A")
    started = time.monotonic()
    made.connect((address.host, address.port))
    made.send(query)
    message = yield from _receive(made, dns.LONGEST)
    took = time.monotonic() - started
    try:
        answer = dns.parse(message, number, target.detail, "A")
    except BrokenError:
        answer = None
    if answer is None or answer.code != "NOERROR":
        raise FailedError("dns")
    return Measured(took)


_ATTEMPTS: Mapping[str, Callable[[socket.socket, ProbeTarget, Address], Attempt]] = {
    "tcp": _tcp,
    "http": _http,
    "dns": _dns,
}


def _receive(made: socket.socket, size: int) -> Generator[int, None, bytes]:
    """What comes next, at most `size` bytes."""
    while True:
        yield select.POLLIN
        with contextlib.suppress(BlockingIOError):  # what came had a wrong checksum
            return made.recv(size)


def _handshake(made: socket.socket, address: Address) -> Generator[int, None, float]:
    """Connect. Seconds from the first SYN to the SYN-ACK."""
    started = time.monotonic()
    error = made.connect_ex((address.host, address.port))
    if error == errno.EINPROGRESS:
        yield select.POLLOUT
        error = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
    waited = time.monotonic() - started
    measured = kernel_seconds(made)
    return waited if measured is None else measured


def kernel_seconds(made: socket.socket) -> float | None:
    """How long a connection's handshake took by the kernel's clock.

    To be asked before anything is sent. None when a SYN had to be sent again.
    """
    info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    (microseconds,) = struct.unpack_from("=I", info, _TCP_INFO_RTT)
    (retransmits,) = struct.unpack_from("=I", info, _TCP_INFO_RETRANSMITS)
    return None if retransmits or not microseconds else microseconds / 1e6


def least_kernel_seconds(made: socket.socket) -> float | None:
    """The shortest round trip of a connection by the kernel's clock, its handshake among them.

    None while anything that was sent has no answer.
    """
    info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    (unanswered,) = struct.unpack_from("=I", info, _TCP_INFO_UNANSWERED)
    (microseconds,) = struct.unpack_from("=I", info, _TCP_INFO_LEAST_RTT)
    return None if unanswered else microseconds / 1e6
