"""What an API server answers to TokenReviews and SubjectAccessReviews, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.lab.apiserver import kubeconfig
from vipscope.kube.review import ACCESS_REVIEWS, TOKEN_REVIEWS, Reviewer

OWN_TOKEN = "own"
AUDIENCES = ["https://kubernetes.default.svc", "vipscope"]


@dataclass
class Reviews:
    """The API server: who has which token, and who may get what."""

    tokens: dict[str, str] = field(default_factory=dict)
    """User name by token."""
    may: set[tuple[str, str]] = field(default_factory=set)
    """User name and path."""
    audiences: list[str] = field(default_factory=lambda: AUDIENCES)
    """That its tokens are for; none: it knows nothing of audiences."""
    fault: Any = None
    """Instead of every answer: a status, a text, or None."""
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path and body of all requests."""
    delay: float = 0.0

    async def answer(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {OWN_TOKEN}"
        body = await request.json()
        self.asked.append((request.method, request.path, body))
        await asyncio.sleep(self.delay)
        if isinstance(self.fault, int):
            return web.json_response({"kind": "Status", "message": "no"}, status=self.fault)
        if isinstance(self.fault, str):
            return web.Response(text=self.fault)
        answers = {TOKEN_REVIEWS: self._token, ACCESS_REVIEWS: self._access}
        status = answers[request.path](body["spec"])
        return web.json_response({**body, "status": status}, status=201)

    def _token(self, spec: Any) -> Any:
        user = self.tokens.get(spec["token"])
        wanted = spec.get("audiences") or self.audiences[:1]
        audiences = [each for each in wanted if each in self.audiences]
        if user is None or (self.audiences and not audiences):
            return {"user": {}, "error": "[invalid bearer token, token lookup failed]"}
        extra = {"authentication.kubernetes.io/pod-name": ["prometheus-0"]}
        told = {"username": user, "uid": "7", "groups": ["system:authenticated"], "extra": extra}
        return {"authenticated": True, "user": told, "audiences": audiences}

    def _access(self, spec: Any) -> Any:
        path = spec["nonResourceAttributes"]["path"]
        return {"allowed": (spec["user"], path) in self.may}


@asynccontextmanager
async def serving(reviews: Reviews, directory: Path) -> AsyncIterator[Path]:
    """Serve it. The path of a kubeconfig for it."""
    application = web.Application()
    application.router.add_post("/{path:.*}", reviews.answer)
    server = web.AppRunner(application, handler_cancellation=True)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{server.addresses[0][1]}"
        yield kubeconfig(directory, url, {"token": OWN_TOKEN})
    finally:
        await server.cleanup()


@asynccontextmanager
async def reviewing(reviews: Reviews, directory: Path) -> AsyncIterator[Reviewer]:
    """Who asks it."""
    async with serving(reviews, directory) as path:
        yield Reviewer(path)
