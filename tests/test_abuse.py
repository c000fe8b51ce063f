"""Clients that mean harm, or are too many, while one that behaves goes on scraping.

One process for all, as in a cluster. How long a scrape takes meanwhile is measured by the bench.
"""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.lab import abuse
from tests.lab.abuse import ENDED, LEFT
from tests.test_cli import Vipscope, running, serving
from tests.web.sites import GOOD, USERS
from vipscope.web.connections import CONNECTIONS

GROWTH = 24 << 20
"""Bytes that memory may grow over all of it: what 256 connections need, and a generous rest."""
GOOD_HEADER = f"Authorization: {GOOD}\r\n".encode()


@dataclass
class Behaved:
    """A client at an address of its own, over one connection that stays open."""

    port: int
    answers: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def scrape(self) -> None:
        connection = HTTPConnection(
            "127.0.0.1", self.port, timeout=20, source_address=("127.0.0.2", 0)
        )
        connection.connect()
        sock = connection.sock
        while not self._stop.wait(0.02):
            connection.request("GET", "/metrics", headers={"Authorization": GOOD})
            answer = connection.getresponse()
            whole = b"vipscope_series " in answer.read()
            self.answers.append(answer.status if whole else 0)
            assert connection.sock is sock, "the connection was ended"
        connection.close()

    def stop(self) -> None:
        self._stop.set()


@dataclass
class Site:
    vipscope: Vipscope
    port: int
    behaved: Behaved
    descriptors: int
    resident: int

    def open_descriptors(self) -> int:
        return len([*Path(f"/proc/{self.vipscope.process.pid}/fd").iterdir()])

    def resident_now(self) -> int:
        status = Path(f"/proc/{self.vipscope.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A process that is sent all of it, and what holds of it in the end."""
    path = tmp_path_factory.mktemp("abuse") / "web.yml"
    path.write_text(USERS)
    flags = ["--collector.disable-defaults", "--collector.conntrack", "--collector.pressure"]
    with running(*serving(*flags, f"--web.config.file={path}")) as vipscope:
        port = int(vipscope.logged(r"serving on 127\.0\.0\.1:(\d+)")[1])
        vipscope.logged("pressure: ok")
        behaved = Behaved(port)
        thread = threading.Thread(target=behaved.scrape)
        thread.start()
        time.sleep(0.2)
        # What one crowd needs is kept for the next.
        asyncio.run(abuse.scrapers(port, GOOD_HEADER))
        made = Site(vipscope, port, behaved, 0, 0)
        made.descriptors, made.resident = made.open_descriptors(), made.resident_now()
        try:
            yield made
        finally:
            behaved.stop()
            thread.join()
        assert made.resident_now() - made.resident < GROWTH
        status, _ = vipscope.stop(signal.SIGTERM)
        vipscope.logged("stopping")
        assert status == 0
    later = vipscope.lines[vipscope.lines.index(next(filter(_is_ready, vipscope.lines))) + 1 :]
    assert [line for line in later if not re.search("vipscope.(cli|runner): ", line)] == []


def _is_ready(line: str) -> bool:
    return "pressure: ok" in line


@pytest.fixture(autouse=True)
def _who_behaves_is_served(site: Site) -> Iterator[None]:
    """All answers to the one that behaves are whole, and what was opened is closed."""
    site.behaved.answers.clear()
    yield
    deadline = time.monotonic() + 12
    while len(site.behaved.answers) <= 2:
        assert time.monotonic() < deadline, "nothing is answered"
        time.sleep(0.05)
    assert {*site.behaved.answers} == {200}
    deadline = time.monotonic() + 12
    while site.open_descriptors() > site.descriptors + 5:
        assert time.monotonic() < deadline, "connections stay open"
        time.sleep(0.05)


def test_two_hundred_scrapers_at_once_are_all_answered(site: Site) -> None:
    for _ in range(3):
        assert asyncio.run(abuse.scrapers(site.port, GOOD_HEADER)) == {"200": 200}


def test_connections_that_are_opened_and_dropped(site: Site) -> None:
    assert asyncio.run(abuse.connects(site.port, 10_000)) == {LEFT: 10_000}


def test_clients_that_take_no_answers(site: Site) -> None:
    outcomes = asyncio.run(abuse.slow_readers(site.port, GOOD_HEADER, seconds=1.0))
    assert outcomes.total() == 100


def test_more_clients_that_never_end_their_request_than_there_may_be(site: Site) -> None:
    most = 0

    async def count() -> abuse.Outcomes:
        nonlocal most
        task = asyncio.create_task(abuse.slow_writers(site.port, 400, seconds=1.0))
        while not task.done():
            most = max(most, site.open_descriptors())
            await asyncio.sleep(0.02)
        return await task

    outcomes = asyncio.run(count())
    assert outcomes[ENDED] > 0
    assert outcomes[LEFT] >= CONNECTIONS // 2
    assert most <= site.descriptors + CONNECTIONS + 16


def test_what_is_no_http_gets_a_short_answer_or_none(site: Site) -> None:
    outcomes = asyncio.run(abuse.nonsense(site.port))
    assert outcomes["400"] >= len(abuse.NO_HTTP)
    assert {*outcomes} <= {"400", "401", "404", "405", "503", ENDED}
    for sent in abuse.NO_HTTP:
        _, answer = asyncio.run(abuse.exchange(site.port, sent))
        assert len(answer) < 300
        assert b"aiohttp" not in answer


def test_wrong_credentials_are_refused_or_put_off(site: Site) -> None:
    outcomes = asyncio.run(abuse.guesses(site.port))
    assert {*outcomes} == {"401", "503"}
