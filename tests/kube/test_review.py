"""The two reviews, asked of an API server over HTTP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.kube.reviews import Reviews, reviewing
from tests.lab.apiserver import kubeconfig
from vipscope.kube import review as module
from vipscope.kube.review import ACCESS_REVIEWS, TOKEN_REVIEWS, Reviewer, ReviewError, Verdict

SCRAPER = "system:serviceaccount:monitoring:prometheus"


def known() -> Reviews:
    return Reviews(tokens={"t": SCRAPER, "o": "other"}, may={(SCRAPER, "/metrics")})


@pytest.mark.parametrize(
    ("token", "path", "verdict"),
    [
        ("t", "/metrics", Verdict(known=True, allowed=True)),
        ("t", "/", Verdict(known=True, allowed=False)),
        ("o", "/metrics", Verdict(known=True, allowed=False)),
        ("x", "/metrics", Verdict(known=False, allowed=False)),
    ],
)
async def test_the_api_server_says_whose_a_token_is_and_what_it_may(
    tmp_path: Path, token: str, path: str, verdict: Verdict
) -> None:
    async with reviewing(known(), tmp_path) as reviewer:
        assert await reviewer.review(token, (), path) == verdict


async def test_two_questions_are_posted_and_nothing_else(tmp_path: Path) -> None:
    reviews = known()
    async with reviewing(reviews, tmp_path) as reviewer:
        await reviewer.review("t", ("vipscope",), "/metrics")
    assert reviews.asked == [
        (
            "POST",
            TOKEN_REVIEWS,
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": "t", "audiences": ["vipscope"]},
            },
        ),
        (
            "POST",
            ACCESS_REVIEWS,
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": SCRAPER,
                    "uid": "7",
                    "groups": ["system:authenticated"],
                    "extra": {"authentication.kubernetes.io/pod-name": ["prometheus-0"]},
                    "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
                },
            },
        ),
    ]


@pytest.mark.parametrize(
    ("theirs", "wanted", "allowed"),
    [
        (["vipscope"], ["vipscope"], True),
        (["vipscope"], ["x", "vipscope"], True),
        (["vipscope"], ["x"], False),
        ([], [], True),
        ([], ["vipscope"], False),
    ],
)
async def test_with_audiences_only_a_token_for_one_of_them_passes(
    tmp_path: Path, theirs: list[str], wanted: list[str], allowed: bool
) -> None:
    reviews = known()
    reviews.audiences = theirs
    async with reviewing(reviews, tmp_path) as reviewer:
        assert (await reviewer.review("t", wanted, "/metrics")).allowed is allowed


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (403, "TokenReview: 403 Forbidden"),
        (500, "TokenReview: 500 Internal Server Error"),
        (200, "TokenReview: the answer is not one: "),
        ("<html>", "TokenReview: the answer is not one: "),
        ('{"status": {"authenticated": "yes"}}', "TokenReview: the answer is not one: "),
        ('{"status": {"authenticated": true, "user": {"groups": 1}}}', "TokenReview: the answer"),
        ("x" * (2 << 20), "TokenReview: the answer is not one: "),
    ],
)
async def test_an_answer_that_is_none_is_an_error_and_no_verdict(
    tmp_path: Path, fault: Any, text: str
) -> None:
    reviews = known()
    reviews.fault = fault
    async with reviewing(reviews, tmp_path) as reviewer:
        with pytest.raises(ReviewError) as raised:
            await reviewer.review("secret-token", (), "/metrics")
    assert str(raised.value).startswith(text)
    assert "secret-token" not in str(raised.value)


@pytest.mark.parametrize("content", ['{"status": {}}', '{"status": {"allowed": true}}'])
async def test_what_is_not_said_is_no(tmp_path: Path, content: str) -> None:
    reviews = known()
    reviews.fault = content
    async with reviewing(reviews, tmp_path) as reviewer:
        verdict = await reviewer.review("t", (), "/metrics")
    assert verdict == Verdict(known=False, allowed=False)


async def test_a_denial_wins_over_what_allows(tmp_path: Path) -> None:
    reviews = known()
    reviews.fault = '{"status": {"authenticated": true, "allowed": true, "denied": true}}'
    async with reviewing(reviews, tmp_path) as reviewer:
        assert not (await reviewer.review("t", (), "/metrics")).allowed


async def test_a_server_that_does_not_answer_is_an_error_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REVIEW_LIMIT", 0.2)
    reviews = known()
    reviews.delay = 5.0
    async with reviewing(reviews, tmp_path) as reviewer:
        with pytest.raises(ReviewError, match=r"no answer within 0\.2 s"):
            await reviewer.review("t", (), "/metrics")


def test_only_the_lease_and_the_reviews_know_another_verb_than_get() -> None:
    package = Path(module.__file__).parents[1]
    found = {
        str(each.relative_to(package))
        for each in package.rglob("*.py")
        if re.search(r"""["'](POST|PUT|PATCH|DELETE)["']|\.(post|patch)\(""", each.read_text())
    }
    assert found == {"kube/lease.py", "kube/review.py"}


@pytest.mark.parametrize("made", [True, False])
async def test_without_a_server_or_a_kubeconfig_there_is_no_verdict(
    tmp_path: Path, made: bool
) -> None:
    path = kubeconfig(tmp_path, "http://127.0.0.1:1") if made else tmp_path / "none"
    with pytest.raises(ReviewError, match="Cannot connect" if made else "Exception"):
        await Reviewer(path).review("t", (), "/metrics")
