"""Clients that mean harm, or are too many: bounded in count, and on loopback only.

Each function does one kind of it to a server and returns how often what came of it: a status, or
what else happened. `python -m tests.lab.abuse KIND PORT` does one kind.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping

Outcomes = Counter[str]

ENDED = "ended"
"""The server closed the connection without an answer, or reset it."""
LEFT = "left"
"""The client did."""
PATIENCE = 20.0
"""Seconds to wait for an answer. A server that takes longer raises TimeoutError."""
AT_ONCE = 100
"""Connections that one kind of abuse has open, where it does not say another number."""

NO_HTTP = [
    b"\r\n\r\n\r\n\x00\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /metrics HTTP/1.1\nHost: x\n\n",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nA b: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"A" * 200_000,
]
"""What is no request, each in another way."""


def credentials(name: str, password: str) -> bytes:
    """The header of basic authentication."""
    token = base64.b64encode(f"{name}:{password}".encode())
    return b"Authorization: Basic " + token + b"\r\n"


def request(path: str, headers: bytes = b"", *, close: bool = True) -> bytes:
    end = b"Connection: close\r\n" if close else b""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + headers + end + b"\r\n"


async def exchange(port: int, sent: bytes, *, whole: bool = True) -> tuple[str, bytes]:
    """Send something and take what comes, all or the first of it: what came of it, and that."""
    async with asyncio.timeout(PATIENCE):
        answer = bytearray()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            return ENDED, b""
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(sent)
                while chunk := await reader.read(1 << 20):
                    answer += chunk
                    if not whole:
                        break
        finally:
            writer.transport.abort()
    head = bytes(answer[:12]).split()
    return (head[1].decode() if len(head) == 2 else ENDED), bytes(answer)


async def _many(
    count: int, at_once: int, one: Callable[[int], Coroutine[None, None, str]]
) -> Outcomes:
    """`one` so many times, `at_once` of them at a time."""
    numbers = iter(range(count))
    outcomes: Outcomes = Counter()

    async def work() -> None:
        for number in numbers:
            outcomes[await one(number)] += 1

    await asyncio.gather(*(work() for _ in range(at_once)))
    return outcomes


async def scrapers(port: int, headers: bytes = b"", count: int = 200) -> Outcomes:
    """So many ask for everything in the same moment."""

    async def one(_: int) -> str:
        status, answer = await exchange(port, request("/metrics", headers))
        whole = b"vipscope_series " in answer and answer.endswith(b"\n")
        return status if whole or status != "200" else "part"

    return await _many(count, count, one)


async def connects(port: int, count: int = 10_000) -> Outcomes:
    """Connections opened and dropped: at once, after half a request, after all of one, by reset."""

    async def one(number: int) -> str:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(ConnectionError):
                await loop.sock_connect(sock, ("127.0.0.1", port))
                if number % 4 > 1:
                    whole = request("/healthz")
                    await loop.sock_sendall(sock, whole[: len(whole) // (number % 3 + 1)])
        return LEFT

    return await _many(count, AT_ONCE, one)


async def slow_readers(
    port: int, headers: bytes = b"", count: int = 100, seconds: float = 2.0
) -> Outcomes:
    """Ask again and again over one connection and take none of the answers."""

    async def one(_: int) -> str:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            try:
                await loop.sock_connect(sock, ("127.0.0.1", port))
                async with asyncio.timeout(seconds):
                    while True:
                        await loop.sock_sendall(sock, request("/metrics", headers, close=False))
                        await asyncio.sleep(0.02)
            except TimeoutError:
                return LEFT
            except ConnectionError:
                return ENDED

    return await _many(count, count, one)


async def slow_writers(port: int, count: int = 100, seconds: float = 2.0) -> Outcomes:
    """Send a request by the byte, and never the last one."""

    async def one(_: int) -> str:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            end = time.monotonic() + seconds
            try:
                await loop.sock_connect(sock, ("127.0.0.1", port))
                await loop.sock_sendall(sock, b"GET /metrics HTTP/1.1\r\nX: ")
                while time.monotonic() < end:
                    await loop.sock_sendall(sock, b"x")
                    await asyncio.sleep(0.1)
            except ConnectionError:
                return ENDED
            return LEFT

    return await _many(count, count, one)


async def nonsense(port: int, count: int = 1000, seed: int = 6) -> Outcomes:
    """What is no HTTP, what nearly is, and noise."""
    chance = random.Random(seed)
    sent = [*NO_HTTP]
    whole = request("/metrics")
    for _ in range(count - len(NO_HTTP)):
        mangled = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            mangled[chance.randrange(len(mangled) - 4)] = chance.randrange(256)
        sent.append(bytes(mangled))
    return await _many(count, AT_ONCE, lambda number: _outcome(port, sent[number]))


async def guesses(port: int, count: int = 1000) -> Outcomes:
    """Passwords of a user that exists and of some that do not, a thousand of them."""

    async def one(number: int) -> str:
        name = "prometheus" if number % 2 else f"user{number}"
        return await _outcome(port, request("/metrics", credentials(name, str(number))))

    return await _many(count, AT_ONCE, one)


async def _outcome(port: int, sent: bytes) -> str:
    return (await exchange(port, sent, whole=False))[0]


KINDS: Mapping[str, Callable[[int, bytes], Coroutine[None, None, Outcomes]]] = {
    "scrapers": scrapers,
    "connects": lambda port, _: connects(port),
    "slow_readers": slow_readers,
    "slow_writers": lambda port, _: slow_writers(port),
    "nonsense": lambda port, _: nonsense(port),
    "guesses": lambda port, _: guesses(port),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.lab.abuse", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("port", type=int)
    parser.add_argument("--user", default=":", help="NAME:PASSWORD, for scrapers and slow_readers")
    parser.add_argument("--seconds", type=float, default=0.0, help="begin anew for so long")
    arguments = parser.parse_args()
    name, _, password = arguments.user.partition(":")
    headers = credentials(name, password) if name else b""
    end = time.monotonic() + arguments.seconds
    outcomes: Outcomes = Counter()
    while not outcomes or time.monotonic() < end:
        outcomes += asyncio.run(KINDS[arguments.kind](arguments.port, headers))
    print(dict(outcomes))  # noqa: T201 - a command prints


if __name__ == "__main__":
    main()
