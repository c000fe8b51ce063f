"""What a finding is, and the words that findings share."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass


class Severity(enum.StrEnum):
    """How bad it is; the worst first."""

    BROKEN = "broken"
    """Some connections fail now, or will at the next change."""
    WARNING = "warning"
    """Not what it should be, but nothing is known to fail by it."""
    INFO = "info"
    """Worth knowing: what happened at some time, what was not looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Its texts hold names that come from the API, the kernel and the network: whoever shows them
    escapes them.
    """

    severity: Severity
    id: str
    """What kind of finding it is: lower case and dashes, the same in every version."""
    title: str
    """One line: what is wrong."""
    evidence: tuple[str, ...] = ()
    """How that is known, a line each. A line about a Service port begins with its name, as `port`
    writes it, and a colon."""
    advice: str = ""
    """What to do."""


def port(namespace: str, service: str, name: str) -> str:
    """A Service port as evidence names it; the port's own name may be empty."""
    return f"{namespace}/{service}:{name}" if name else f"{namespace}/{service}"


def count(number: int, what: str) -> str:
    """`1 rule`, `2 rules`, `3 addresses`."""
    if number != 1:
        what += "es" if what.endswith("s") else "s"
    return f"{number} {what}"


def span(seconds: float) -> str:
    """A time in its own size: `45 s`, `12 min`, `5 h`, `3 d`."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def names(of: Collection[str]) -> str:
    """In order, with `and` before the last."""
    *first, last = sorted(of)
    return f"{', '.join(first)} and {last}" if first else last
