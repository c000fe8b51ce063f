"""DNS answers of every kind: good ones are understood, odd ones waited past, broken ones told."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.dns import DnsServer, Reply, record, response, zone
from vipscope.diagnosis.evidence import Answer
from vipscope.probe import dns
from vipscope.probe.dns import ask, parse, query
from vipscope.snapshot import BrokenError

NAME = "web.shop.svc.cluster.local"
A = bytes((10, 96, 0, 7))
QUERY = query(7, NAME, "A")
GOOD = response(QUERY, record(1, A))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "TIMEOUT", 0.2)


async def answer(reply: Reply, kind: str = "A") -> Answer:
    with DnsServer(reply) as server:
        return await ask("127.0.0.1", server.port, NAME, kind)


@pytest.mark.parametrize(("kind", "address"), [("A", "10.96.0.7"), ("AAAA", "fd00:10:96::7")])
async def test_an_address_is_understood(kind: str, address: str) -> None:
    assert await answer(zone({NAME: address}), kind) == Answer("NOERROR", (address,))


@pytest.mark.parametrize(
    ("code", "name"), [(0, "NOERROR"), (2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED"), (9, "9")]
)
async def test_a_code_is_understood(code: int, name: str) -> None:
    assert await answer(lambda query: [response(query, code=code)]) == Answer(name)


async def test_an_alias_is_followed_through_compressed_names() -> None:
    def reply(query: bytes) -> list[bytes]:
        # db. and then a pointer to the "local" of the question
        alias = b"\x02db" + struct.pack(">H", 0xC000 | 12 + NAME.index("local"))
        return [response(query, record(5, alias), record(1, A), record(16, b"\x01x"))]

    assert await answer(reply) == Answer("NOERROR", ("10.96.0.7",), ("db.local",))


def other_question(query: bytes) -> bytes:
    return response(query[:13] + b"x" + query[14:], record(1, A))


@pytest.mark.parametrize(
    "odd",
    [
        lambda query: response(query, record(1, b"\x01\x02\x03\x04"), number=1 ^ query[1]),
        lambda query: response(query, record(1, b"\x01\x02\x03\x04"), flags=0x0100),
        other_question,
        lambda query: response(query[:-4] + b"\0\x1c\0\x01", record(28, bytes(16))),
        lambda _: b"",
        lambda query: query[:11],
    ],
)
async def test_what_is_no_answer_to_the_question_is_waited_past(odd: object) -> None:
    def reply(query: bytes) -> list[bytes]:
        assert callable(odd)
        return [odd(query), response(query, record(1, A))]

    assert (await answer(reply)).addresses == ("10.96.0.7",)


async def test_a_lost_query_is_asked_again_and_then_it_is_silent() -> None:
    with DnsServer(lambda _: []) as server:
        with pytest.raises(TimeoutError, match=r"no answer in 0\.4 s"):
            await ask("127.0.0.1", server.port, NAME, "A")
        numbers = {each[:2] for each in server.asked}
        assert len(server.asked) == 2
    assert len(numbers) == 2


async def test_nobody_there_is_told_at_once() -> None:
    with DnsServer(lambda _: []) as server:
        port = server.port
    with pytest.raises(ConnectionRefusedError):
        await ask("127.0.0.1", port, NAME, "A")


@pytest.mark.parametrize(
    ("records", "error"),
    [
        ([b"\xc0"], "cut off"),
        ([b"\xc0\xff"], "points forwards"),
        ([b"\xc0\x2c" + bytes(14)], "points forwards"),  # to itself
        ([b"\x80"], "unknown type"),
        ([b"\x05ab"], "cut off"),
        ([b"\x00\x00\x01"], "cut off"),
        ([record(1, A)[:-1]], "cut off"),
        ([record(1, A + A)], "address of 8 bytes"),
        ([(b"\x3f" + b"x" * 63) * 5 + b"\0"], "too long"),
    ],
)
def test_a_broken_answer_is_told(records: list[bytes], error: str) -> None:
    with pytest.raises(BrokenError, match=error):
        parse(response(QUERY, *records), 7, NAME, "A")


def test_names_that_point_at_each_other_are_no_loop() -> None:
    start = len(QUERY)
    # an alias whose name points back to where it begins
    loop = record(5, b"\x01x" + struct.pack(">H", 0xC000 | start + 12))
    with pytest.raises(BrokenError, match="points forwards"):
        parse(response(QUERY, loop), 7, NAME, "A")


def test_an_answer_too_long_for_udp_is_told() -> None:
    with pytest.raises(BrokenError, match="too long for UDP"):
        parse(response(QUERY, flags=0x8380), 7, NAME, "A")
    whole = parse(response(QUERY, record(1, A), flags=0x8380), 7, NAME, "A")
    assert whole == Answer("NOERROR", ("10.96.0.7",))


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, ".".join(["x" * 60] * 5), "ü.b"])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match="no name that DNS could be asked for"):
        query(1, name, "A")


@given(st.data())
def test_a_changed_answer_is_understood_or_broken(data: st.DataObject) -> None:
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(changed[: data.draw(st.integers(0, len(GOOD)))])
    for message in (bytes(changed), cut):
        try:
            parse(message, 7, NAME, "A")
        except BrokenError:
            continue


@given(st.binary(max_size=600))
def test_any_datagram_is_understood_or_broken(tail: bytes) -> None:
    with contextlib.suppress(BrokenError):
        parse(response(QUERY, tail, tail), 7, NAME, "A")
