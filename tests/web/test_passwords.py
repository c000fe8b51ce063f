"""Names and passwords against real bcrypt hashes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import pytest

from vipscope.web import passwords as module
from vipscope.web.checks import BusyError
from vipscope.web.passwords import PASSWORD_BYTES, Passwords, hashing_thread


def hashed(password: str, cost: int = 4) -> bytes:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost))


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with hashing_thread() as made:
        yield made


@pytest.fixture
def users(thread: ThreadPoolExecutor) -> Passwords:
    return Passwords({"a": hashed("right"), "b": hashed("ümläut"), "c": hashed("x" * 72)}, thread)


@pytest.mark.parametrize(
    ("name", "password", "right"),
    [
        ("a", "right", True),
        ("a", "wrong", False),
        ("a", "", False),
        ("a", "right\0", False),
        ("b", "ümläut", True),
        ("b", "right", False),
        ("c", "x" * PASSWORD_BYTES, True),
        ("c", "x" * (PASSWORD_BYTES + 1), False),
        ("nobody", "right", False),
        ("", "", False),
    ],
)
async def test_only_a_users_own_password_is_right_also_the_second_time(
    users: Passwords, name: str, password: str, right: bool
) -> None:
    for _ in range(2):
        assert await users.check(name, password, "1") is right


@pytest.mark.parametrize("prefix", [b"$2a$", b"$2b$", b"$2y$"])
async def test_hashes_of_any_program_are_taken(prefix: bytes, thread: ThreadPoolExecutor) -> None:
    users = Passwords({"a": prefix + hashed("right")[4:]}, thread)
    assert await users.check("a", "right", "1")
    assert not await users.check("a", "wrong", "1")


class Counted:
    """bcrypt.hashpw, and with which cost it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.costs: list[bytes] = []
        self._really = bcrypt.hashpw
        monkeypatch.setattr(bcrypt, "hashpw", self._hashpw)

    def _hashpw(self, password: bytes, salt: bytes) -> bytes:
        self.costs.append(salt[4:6])
        return self._really(password, salt)


async def test_a_right_password_is_hashed_once_and_a_wrong_one_each_time(
    users: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    for _ in range(3):
        await users.check("a", "right", "1")
    assert len(counted.costs) == 1
    for _ in range(3):
        await users.check("a", "wrong", "1")
    assert len(counted.costs) == 4
    await users.check("a", "right", "1")
    assert len(counted.costs) == 4


async def test_an_unknown_name_costs_what_the_slowest_user_does(
    monkeypatch: pytest.MonkeyPatch,
    thread: ThreadPoolExecutor,
) -> None:
    users = Passwords({"a": hashed("x", 4), "b": hashed("x", 6), "c": hashed("x", 5)}, thread)
    counted = Counted(monkeypatch)
    await users.check("nobody", "x", "1")
    await users.check("a", "x" * 100, "1")
    assert counted.costs == [b"06", b"04"]


async def test_who_asks_the_same_at_once_waits_for_one_hash(
    users: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    assert all(await asyncio.gather(*(users.check("a", "right", "1") for _ in range(200))))
    assert len(counted.costs) == 1


async def test_guesses_wait_in_a_short_queue_and_one_address_has_few_places_in_it(
    thread: ThreadPoolExecutor,
) -> None:
    users = Passwords({"a": hashed("right", 8)}, thread)
    guesses = [
        asyncio.create_task(users.check("a", f"{peer} {n}", f"10.0.0.{peer}"))
        for peer in range(5)
        for n in range(20)
    ]
    await asyncio.sleep(0)
    assert await users.check("a", "right", "10.0.9.9")
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    assert answers.count(False) == 5 * module.WAITING_OF_PEER
    assert sum(isinstance(each, BusyError) for each in answers) == 100 - 10
    assert await users.check("a", "right", "10.0.0.1")


async def test_the_queue_is_bounded_however_many_addresses_ask(thread: ThreadPoolExecutor) -> None:
    users = Passwords({"a": hashed("right", 4)}, thread)
    checks = (users.check("a", f"{n}", f"10.0.0.{n}") for n in range(100))
    answers = await asyncio.gather(*checks, return_exceptions=True)
    assert answers.count(False) == 1 + module.WAITING


async def test_the_event_loop_goes_on_while_a_password_is_hashed(
    thread: ThreadPoolExecutor,
) -> None:
    users = Passwords({"a": hashed("right", 4)[:4] + b"12" + hashed("right", 4)[6:]}, thread)
    started = time.monotonic()
    check = asyncio.create_task(users.check("a", "wrong", "1"))
    turns = 0
    while not check.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert turns > (time.monotonic() - started) / 0.05


async def test_guesses_take_the_cpu_that_nobody_else_wants(
    users: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def hashpw(_: bytes, salt: bytes) -> bytes:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return salt

    monkeypatch.setattr(bcrypt, "hashpw", hashpw)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    await users.check("a", "wrong", "1")
    assert found == [min(before + module.NICENESS, 19)]  # for which a test may be too nice itself
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


async def test_who_hangs_up_takes_nothing_from_the_others(users: Passwords) -> None:
    first = asyncio.create_task(users.check("a", "right", "1"))
    second = asyncio.create_task(users.check("a", "right", "1"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert first.cancelled()
