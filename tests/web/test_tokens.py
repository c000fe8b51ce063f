"""What is remembered of the API server's verdicts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from vipscope.kube.review import Reviewer, ReviewError, Verdict
from vipscope.web import tokens as module
from vipscope.web.checks import BusyError
from vipscope.web.tokens import ALLOWED_FOR, REFUSED_FOR, Tokens

YES, UNKNOWN = Verdict(known=True, allowed=True), Verdict(known=False, allowed=False)


class StandIn(Reviewer):
    """Lets in tokens that begin with `good`, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.trouble = ""
        self.under_way = self.most = 0

    async def review(self, token: str, audiences: Sequence[str], path: str) -> Verdict:
        del audiences
        self.asked.append(f"{token} {path}")
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.001)
        self.under_way -= 1
        if self.trouble:
            raise ReviewError(self.trouble)
        return YES if token.startswith("good") else UNKNOWN


class Site:
    def __init__(self) -> None:
        self.now = 1000.0
        self.reviewer = StandIn()
        self.tokens = Tokens(self.reviewer, (), lambda: self.now)

    async def check(self, token: str, path: str = "/metrics", peer: str = "1") -> Verdict:
        return await self.tokens.check(token, path, peer)


@pytest.mark.parametrize(
    ("token", "verdict", "seconds"), [("good", YES, ALLOWED_FOR), ("bad", UNKNOWN, REFUSED_FOR)]
)
async def test_a_verdict_holds_for_a_while(token: str, verdict: Verdict, seconds: float) -> None:
    site = Site()
    for _ in range(3):
        assert await site.check(token) == verdict
    site.now += seconds - 0.1
    assert await site.check(token) == verdict
    assert len(site.reviewer.asked) == 1
    site.now += 0.1
    assert await site.check(token) == verdict
    assert len(site.reviewer.asked) == 2


async def test_a_verdict_is_for_one_path() -> None:
    site = Site()
    await site.check("good", "/metrics")
    await site.check("good", "/")
    assert site.reviewer.asked == ["good /metrics", "good /"]


async def test_who_asks_at_once_waits_for_one_review() -> None:
    site = Site()
    assert {*await asyncio.gather(*(site.check("good") for _ in range(200)))} == {YES}
    assert len(site.reviewer.asked) == 1


async def test_a_flood_of_wrong_tokens_is_bounded_and_the_good_one_stays_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 20)
    site = Site()
    await site.check("good")
    for n in range(100):
        await site.check(f"bad{n}")
    assert len(site.tokens._refused._verdicts) == 20
    await site.check("good")
    await site.check("bad99")
    assert len(site.reviewer.asked) == 101


async def test_few_reviews_run_at_once_and_few_wait() -> None:
    site = Site()
    checks = (site.check(f"bad{n}", peer=f"{n}") for n in range(200))
    answers = await asyncio.gather(*checks, return_exceptions=True)
    assert site.reviewer.most == module.AT_ONCE
    assert answers.count(UNKNOWN) == module.AT_ONCE + module.WAITING
    assert sum(isinstance(each, BusyError) for each in answers) == 200 - answers.count(UNKNOWN)


async def test_one_address_cannot_fill_the_queue() -> None:
    site = Site()
    flood = [asyncio.create_task(site.check(f"bad{n}", peer="1")) for n in range(200)]
    await asyncio.sleep(0)
    assert await site.check("good", peer="2") == YES
    answers = await asyncio.gather(*flood, return_exceptions=True)
    assert answers.count(UNKNOWN) == module.WAITING_OF_PEER


async def test_a_failed_review_is_not_remembered_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    site = Site()
    site.reviewer.trouble = "503 no"
    for _ in range(3):
        with pytest.raises(ReviewError, match="503 no"):
            await site.check("good")
    site.reviewer.trouble = ""
    assert await site.check("good") == YES
    assert caplog.messages == [
        "bearer tokens cannot be checked: 503 no",
        "bearer tokens are checked again",
    ]


async def test_a_verdict_outlives_the_api_server_only_as_long_as_it_holds() -> None:
    site = Site()
    await site.check("good")
    site.reviewer.trouble = "away"
    assert await site.check("good") == YES
    site.now += ALLOWED_FOR
    with pytest.raises(ReviewError):
        await site.check("good")


async def test_no_token_is_kept() -> None:
    site = Site()
    await site.check("good-secret")
    assert all(b"secret" not in key for key in site.tokens._allowed._verdicts)
