"""Why a request or a watch ended. Every trouble with the API server is one of these."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """Why a list or watch starts anew: the label `reason` of vipscope_watch_restarts_total."""

    CLOSED = "closed"
    """The server ended a watch in good order, as it does every few minutes."""
    EMPTY = "empty"
    """A 200 that ended early and without a single event."""
    EXPIRED = "expired"
    """410: the resource version, or the continue token of a list, is too old."""
    BEHIND = "behind"
    """The server, after a switch to another one, does not know yet what was seen before."""
    THROTTLED = "throttled"
    """429."""
    DENIED = "denied"
    """401 or 403."""
    SERVER_ERROR = "server_error"
    """500 to 599."""
    REFUSED = "refused"
    """Any other answer than 200."""
    ERROR_EVENT = "error_event"
    """An ERROR event in the stream that is not a 410."""
    SILENT = "silent"
    """Connected, but not even a bookmark came in time."""
    TRUNCATED = "truncated"
    """The connection broke, or the body ended in the middle."""
    MALFORMED = "malformed"
    """What came is not what an API server sends, JSON to begin with."""
    UNREACHABLE = "unreachable"
    """No connection: name, route, port, TLS."""
    CONFIGURATION = "configuration"
    """No usable service account or kubeconfig, or an exec plugin that failed."""


class ApiError(Exception):
    """The API server did not give what was asked for; the text says what it gave."""

    def __init__(
        self, reason: Reason, text: str, *, status: int | None = None, retry_after: float = 0.0
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.status = status
        """HTTP status, None when there was no answer."""
        self.retry_after = retry_after
        """Seconds that the server asked to be left alone, 0 when it did not."""
