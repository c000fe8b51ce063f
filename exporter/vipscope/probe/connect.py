"""Whether a TCP connection comes about. It is closed at once, and nothing is sent on it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Iterable
from typing import Final

from vipscope.diagnosis.evidence import Attempt, Outcome

TIMEOUT: Final = 2.0
"""Seconds: two SYNs, as the second one leaves after one."""
AT_ONCE: Final = 20

_OUTCOMES: Final = {errno.ECONNREFUSED: Outcome.REFUSED, errno.ETIMEDOUT: Outcome.TIMED_OUT}


Target = tuple[str, int]
"""Address and port."""


async def connect_all(targets: Iterable[Target]) -> dict[Target, Attempt]:
    """Try each once, a few at a time. Addresses are literal ones, no names."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(address: str, port: int) -> Attempt:
        async with turn:
            return await connect(address, port)

    wanted = list(dict.fromkeys(targets))
    attempts = await asyncio.gather(*(one(*target) for target in wanted))
    return dict(zip(wanted, attempts, strict=True))


async def connect(address: str, port: int, *, timeout: float = TIMEOUT) -> Attempt:  # noqa: ASYNC109 - part of the answer
    """Try one."""
    started = time.monotonic()
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        socket.inet_pton(family, address)
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except TimeoutError:
        return Attempt(Outcome.TIMED_OUT, f"no answer in {timeout:g} s")
    except OSError as error:
        outcome = _OUTCOMES.get(error.errno or 0, Outcome.FAILED)
        return Attempt(outcome, os.strerror(error.errno) if error.errno else str(error))
    return Attempt(Outcome.CONNECTED, f"{(time.monotonic() - started) * 1000:.1f} ms")
