"""Bearer tokens: the API server's verdicts, remembered for a while."""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from vipscope.kube.review import Reviewer, ReviewError, Verdict
from vipscope.web.checks import Checks

ALLOWED_FOR, REFUSED_FOR = 60.0, 10.0
"""Seconds that a verdict holds. So long a token that was taken back still opens."""
REMEMBERED = 1000
"""Verdicts of either kind that are remembered."""
AT_ONCE, WAITING, WAITING_OF_PEER = 4, 32, 8
"""Reviews that are under way, and that may wait, in all and of one address."""

log = logging.getLogger(__name__)


class _Remembered:
    """Verdicts until they run out, the newest so many of them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._verdicts: OrderedDict[bytes, tuple[float, Verdict]] = OrderedDict()

    def get(self, key: bytes, now: float) -> Verdict | None:
        end, verdict = self._verdicts.get(key, (now, None))
        return verdict if now < end else None

    def put(self, key: bytes, verdict: Verdict, now: float) -> None:
        self._verdicts.pop(key, None)
        self._verdicts[key] = (now + self._seconds, verdict)
        if len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)


class Tokens:
    """Asks for reviews. A token itself is kept nowhere, only a keyed digest of it."""

    def __init__(
        self,
        reviewer: Reviewer,
        audiences: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reviewer = reviewer
        self._audiences = audiences
        self._clock = clock
        self._key = secrets.token_bytes(32)
        # Apart, so that a flood of wrong tokens does not make the good ones forgotten.
        self._allowed = _Remembered(ALLOWED_FOR)
        self._refused = _Remembered(REFUSED_FOR)
        self._checks: Checks[Verdict] = Checks(AT_ONCE, WAITING, WAITING_OF_PEER)
        self._trouble = ""

    async def check(self, token: str, path: str, peer: str) -> Verdict:
        """What the API server says. Raises ReviewError when it says nothing, and BusyError."""
        key = hmac.digest(self._key, f"{path} {token}".encode(), "sha256")
        now = self._clock()
        verdict = self._allowed.get(key, now) or self._refused.get(key, now)
        if verdict is None:
            verdict = await self._checks.run(key, peer, lambda: self._ask(key, token, path))
        return verdict

    async def _ask(self, key: bytes, token: str, path: str) -> Verdict:
        try:
            verdict = await self._reviewer.review(token, self._audiences, path)
        except ReviewError as error:
            self._tell(str(error))
            raise
        self._tell("")
        remembered = self._allowed if verdict.allowed else self._refused
        remembered.put(key, verdict, self._clock())
        return verdict

    def _tell(self, trouble: str) -> None:
        """Log what changed, not every request."""
        if trouble and not self._trouble:
            log.warning("bearer tokens cannot be checked: %s", trouble)
        elif self._trouble and not trouble:
            log.info("bearer tokens are checked again")
        self._trouble = trouble
