"""Whose a bearer token is and what that user may, asked of the API server.

A TokenReview and a SubjectAccessReview are questions in the form of a POST: nothing is stored. This
client can send these two and, as its parent, GET.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp
import msgspec

from vipscope.kube.client import Client

TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - no token
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
REVIEW_LIMIT = 5.0
"""Seconds for an answer."""
ANSWER_BYTES = 1 << 20
"""Bytes of an answer that are read. A user with many groups has some KiB."""


class User(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose a token is, as one review tells and the other is told."""

    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}


class _TokenStatus(msgspec.Struct):
    authenticated: bool = False
    user: User = User()
    audiences: list[str] = []


class _AccessStatus(msgspec.Struct):
    allowed: bool = False
    denied: bool = False


class _TokenReview(msgspec.Struct):
    status: _TokenStatus


class _AccessReview(msgspec.Struct):
    status: _AccessStatus


R = TypeVar("R", _TokenReview, _AccessReview)


class ReviewError(Exception):
    """The API server did not answer the question; the text says why and holds no token."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the API server says of a token and a path."""

    known: bool
    """Whether it is anybody's token."""
    allowed: bool
    """Whether that user may get the path."""


class Reviewer(Client):
    """A client that can ask for the two reviews."""

    async def review(self, token: str, audiences: Sequence[str], path: str) -> Verdict:
        """Whether the token's user may `get` the non-resource URL `path`.

        With `audiences` the token must be for one of them. Raises ReviewError.
        """
        try:
            async with asyncio.timeout(REVIEW_LIMIT):
                api = await self._api()
                try:
                    return await _review(api, token, audiences, path)
                finally:
                    await api.close()
        except TimeoutError:
            raise ReviewError(f"no answer within {REVIEW_LIMIT:g} s") from None
        except ReviewError:
            raise
        except Exception as error:  # noqa: BLE001 - a wrong kubeconfig leads to any
            raise ReviewError(f"{type(error).__name__}: {error}") from None


async def _review(api: Any, token: str, audiences: Sequence[str], path: str) -> Verdict:
    asked: dict[str, Any] = {"token": token}
    if audiences:
        asked["audiences"] = list(audiences)
    told = (await _post(api, TOKEN_REVIEWS, "TokenReview", asked, _TokenReview)).status
    # An authenticator that knows no audiences says nothing of them, and has not checked them.
    if not told.authenticated or (audiences and not {*audiences} & {*told.audiences}):
        return Verdict(known=False, allowed=False)
    user = msgspec.to_builtins(told.user)
    user["user"] = user.pop("username", "")
    access = user | {"nonResourceAttributes": {"path": path, "verb": "get"}}
    may = (await _post(api, ACCESS_REVIEWS, "SubjectAccessReview", access, _AccessReview)).status
    return Verdict(known=True, allowed=may.allowed and not may.denied)


async def _post(api: Any, path: str, kind: str, spec: dict[str, Any], answer: type[R]) -> R:
    _, url, headers, *_ = await api.param_serialize(
        "POST",
        path,
        header_params={"Accept": "application/json", "Content-Type": "application/json"},
        auth_settings=["BearerToken"],
    )
    body = {"apiVersion": f"{path.split('/')[2]}/v1", "kind": kind, "spec": spec}
    timeout = aiohttp.ClientTimeout(total=REVIEW_LIMIT)
    reply = await api.call_api("POST", url, headers, body, _request_timeout=timeout)
    async with reply.response as response:
        content = bytearray()
        while len(content) <= ANSWER_BYTES and (chunk := await response.content.readany()):
            content += chunk
        if response.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise ReviewError(f"{kind}: {response.status} {response.reason}")
    try:
        return msgspec.json.decode(content, type=answer)
    except msgspec.MsgspecError as error:
        raise ReviewError(f"{kind}: the answer is not one: {error}") from None
