"""How a connection that is tried ends."""

from __future__ import annotations

import asyncio
import socket

import pytest

from vipscope.diagnosis.evidence import Attempt, Outcome
from vipscope.probe import connect as module
from vipscope.probe.connect import AT_ONCE, connect, connect_all


async def test_a_listener_is_connected_to_and_hung_up_on_without_a_byte() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        attempt = await connect("127.0.0.1", listener.getsockname()[1])
        assert attempt.outcome is Outcome.CONNECTED
        assert attempt.detail.endswith(" ms")
        client, _ = listener.accept()
        with client:
            assert client.recv(1) == b""


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_port_where_nobody_listens_refuses(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind((address, 0))
        attempt = await connect(address, taken.getsockname()[1])
    assert attempt == (Outcome.REFUSED, "Connection refused")


async def test_silence_is_a_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        target = listener.getsockname()
        with socket.create_connection(target), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(target)
            attempt = await connect(*target, timeout=0.1)
    assert attempt == (Outcome.TIMED_OUT, "no answer in 0.1 s")


@pytest.mark.parametrize("address", ["localhost", "10.0.0.1-10.0.0.9", "255.255.255.255", ""])
async def test_what_is_no_address_fails_and_no_name_is_looked_up(address: str) -> None:
    attempt = await connect(address, 80)
    assert attempt.outcome is Outcome.FAILED
    assert attempt.detail


async def test_each_target_is_tried_once_and_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = most = 0
    tried = []

    async def counting(address: str, port: int) -> Attempt:
        nonlocal now, most
        tried.append((address, port))
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return Attempt(Outcome.CONNECTED, address)

    monkeypatch.setattr(module, "connect", counting)
    targets = [(f"10.0.0.{number}", 80) for number in range(3 * AT_ONCE)]
    found = await connect_all([*targets, *targets])
    assert tried == targets
    assert found == {each: (Outcome.CONNECTED, each[0]) for each in targets}
    assert most == AT_ONCE
