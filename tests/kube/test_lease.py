"""One Lease and several replicas that want it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.kube.leases import Leases
from tests.lab.apiserver import kubeconfig
from tests.stubs import until
from vipscope.kube import lease as module
from vipscope.kube.lease import Lease, Writer


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is sooner, and in the same order."""
    monkeypatch.setattr(module, "DURATION", 3)
    monkeypatch.setattr(module, "HOLD", 2.0)
    monkeypatch.setattr(module, "RETRY", 0.02)


@asynccontextmanager
async def trying(*leases: Lease) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in leases]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for each in leases:
            await each.release()


def replica(leases: Writer, identity: str) -> Lease:
    return Lease(leases, "vipscope", "active", identity)


async def test_one_replica_gets_it_and_the_other_waits() -> None:
    leases = Leases()
    a, b = replica(leases, "a"), replica(leases, "b")
    async with trying(a, b):
        await until(lambda: a.attempted.is_set() and b.attempted.is_set())
        await until(lambda: a.held or b.held)
        active, other = (a, b) if a.held else (b, a)
        renewed = leases.spec["renewTime"]
        await until(lambda: leases.spec["renewTime"] > renewed)
        await until(lambda: other.holder == leases.spec["holderIdentity"])
        assert active.held
        assert not other.held
        assert not other.changed.is_set()
        assert leases.spec["leaseTransitions"] == 1
        assert leases.spec["leaseDurationSeconds"] == 3


async def test_who_cannot_renew_gives_up_before_another_takes_over() -> None:
    leases = Leases()
    a, b = replica(leases, "a"), replica(leases, "b")
    async with trying(a):
        await until(lambda: a.held)
        async with trying(b):
            await until(lambda: b.holder == "a")
            a.changed.clear()
            leases.refused.add("a")
            await until(lambda: not a.held)
            assert a.changed.is_set()
            assert a.trouble == "500 refused"
            assert not b.held
            await until(lambda: b.held, 20)
            await until(lambda: a.holder == "b")
            assert not a.held
    assert leases.spec["leaseTransitions"] == 2


async def test_who_stops_gives_it_back_at_once() -> None:
    leases = Leases()
    a, b = replica(leases, "a"), replica(leases, "b")
    async with trying(a):
        await until(lambda: a.held)
    assert not a.held
    assert leases.spec["holderIdentity"] == ""
    async with trying(b):
        await until(lambda: b.held, seconds=module.HOLD)


async def test_who_holds_nothing_gives_nothing_back() -> None:
    leases = Leases()
    await replica(leases, "a").release()
    assert leases.lease is None


async def test_what_somebody_else_holds_by_now_is_not_given_back() -> None:
    leases = Leases()
    a = replica(leases, "a")
    async with trying(a):
        await until(lambda: a.held)
        leases.take("b")
    assert leases.spec["holderIdentity"] == "b"


async def test_a_lease_that_somebody_took_is_lost_at_once() -> None:
    leases = Leases()
    a = replica(leases, "a")
    async with trying(a):
        await until(lambda: a.held)
        leases.take("b")
        await until(lambda: not a.held, seconds=module.HOLD - 0.1)
        assert a.holder == "b"


async def test_a_write_that_comes_too_late_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    leases = Leases()
    a = replica(leases, "a")
    really = leases.send

    async def overtaken(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        answer = await really(method, path, body)
        if method == "GET":
            leases.version += 1
            leases.lease = leases.lease or {"metadata": {}, "spec": {}}
        return answer

    monkeypatch.setattr(leases, "send", overtaken)
    async with trying(a):
        await a.attempted.wait()
        assert not a.held
        assert not a.trouble


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_a_refusal_is_told(status: int) -> None:
    leases = Leases()
    leases.status = status
    a = replica(leases, "a")
    async with trying(a):
        await a.attempted.wait()
        assert a.trouble == f"{status} as the test wants it"
        leases.status = 0
        await until(lambda: a.held)
        assert a.trouble == ""


async def test_what_others_wrote_into_the_lease_stays() -> None:
    leases = Leases()
    leases.lease = {"metadata": {"resourceVersion": "0", "labels": {"x": "y"}}, "spec": {"z": 1}}
    a = replica(leases, "a")
    async with trying(a):
        await until(lambda: a.held)
    assert leases.lease is not None
    assert leases.lease["metadata"]["labels"] == {"x": "y"}
    assert leases.spec["z"] == 1


async def test_over_http(tmp_path: Path) -> None:
    leases = Leases()

    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        text = await request.text()
        status, found = await leases.send(
            request.method, request.path, json.loads(text) if text else None
        )
        return web.json_response(found, status=status)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    server = web.AppRunner(application)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{server.addresses[0][1]}"
    a = replica(Writer(kubeconfig(tmp_path, url, {"token": "secret"})), "a")
    try:
        async with trying(a):
            await until(lambda: a.held)
            renewed = leases.spec["renewTime"]
            await until(lambda: leases.spec["renewTime"] > renewed)
        assert leases.spec["holderIdentity"] == ""
    finally:
        await server.cleanup()


async def test_without_a_server_the_trouble_is_told(tmp_path: Path) -> None:
    a = replica(Writer(kubeconfig(tmp_path, "http://127.0.0.1:1")), "a")
    async with trying(a):
        await a.attempted.wait()
        assert "Cannot connect" in a.trouble
        assert not a.held
