"""Basic authentication: names and passwords against bcrypt hashes."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import bcrypt

from vipscope.web.checks import Checks

WAITING, WAITING_OF_PEER = 16, 2
"""Checks that may wait for the one that is made, in all and of one address. At cost 10, 50 ms each,
the last one waits less than a second."""
NICENESS = 10
"""Of the thread that hashes, for on Linux each has its own: guesses take the CPU that nobody else
wants."""
PASSWORD_BYTES = 72
"""What bcrypt looks at."""
SALT_CHARACTERS = 29
"""With which a hash begins: version, cost and salt."""


class Passwords:
    """The users of one web configuration file.

    A password is hashed in a thread, one at a time. The user's last right one is remembered, as a
    keyed digest that means nothing to anyone else, so that a scrape does not pay for a hash.
    """

    def __init__(self, users: Mapping[str, bytes], thread: ThreadPoolExecutor) -> None:
        """Hashes by name, at least one, and the thread to hash in: see `hashing_thread`."""
        self._users = users
        self._thread = thread
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        """Digest of name and password, by name."""
        # Nobody's: a name that is unknown takes as long as the slowest user's.
        slowest = max(users.values(), key=lambda each: int(each[4:6]))
        self._nobodys = slowest[:7] + b"." * 53
        self._checks: Checks[bool] = Checks(1, WAITING, WAITING_OF_PEER)

    async def check(self, name: str, password: str, peer: str) -> bool:
        """Whether it is the name and password of a user. Raises BusyError."""
        given = f"{name}:{password}".encode()
        digest = hmac.digest(self._key, given, "sha256")
        if hmac.compare_digest(digest, self._right.get(name, self._key)):
            return True

        async def compute() -> bool:
            loop = asyncio.get_running_loop()
            hashed = self._users.get(name, self._nobodys)
            found = await loop.run_in_executor(self._thread, _matches, password.encode(), hashed)
            return found and name in self._users

        right = await self._checks.run(digest, peer, compute)
        if right:
            self._right[name] = digest
        return right


def hashing_thread() -> ThreadPoolExecutor:
    """One thread to hash in, which is not started before it is needed."""
    return ThreadPoolExecutor(1, "bcrypt", os.nice, (NICENESS,))


def _matches(password: bytes, hashed: bytes) -> bool:
    """Whether the password has this hash. One that is too long has none, and takes as long."""
    fits = len(password) <= PASSWORD_BYTES and b"\0" not in password
    made = bcrypt.hashpw(password if fits else b"-", hashed[:SALT_CHARACTERS])
    return hmac.compare_digest(made[SALT_CHARACTERS:], hashed[SALT_CHARACTERS:]) and fits
