"""What was found out, for people and for programs: steps, each with its verdict and its evidence.

Names and addresses come from the API, the kernel and the network, so whoever prints a text escapes
it here, a line at a time.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from vipscope.logs import escape

MOST_EVIDENCE: Final = 20
"""Lines of evidence that are printed for people; JSON has them all."""


class Verdict(enum.StrEnum):
    """What a step or all of them come to."""

    OK = "ok"
    WARN = "warn"
    """Not what it should be, but nothing is lost by it."""
    UNKNOWN = "unknown"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at."""

    title: str
    verdict: Verdict
    summary: str
    """One line: what was found; of a broken step the cause."""
    evidence: tuple[str, ...] = ()
    advice: str = ""
    """What to do, where that is known."""
    subject: str = ""
    """What of it this is about, such as an address; "" for the whole."""


@dataclass(frozen=True, slots=True)
class Report:
    """All steps and what they come to."""

    subject: str
    node: str
    steps: tuple[Step, ...]
    verdict: Verdict
    conclusion: str
    """One sentence that names the cause."""

    @property
    def is_clear(self) -> bool:
        """Whether nothing is broken, as far as that had to be known."""
        return self.verdict in (Verdict.OK, Verdict.WARN)


def as_text(report: Report) -> str:
    """The report for people, with a line end at its end."""
    return "".join(f"{escape(line)}\n" for line in _lines(report))


def as_json(report: Report) -> str:
    """The report for programs: one JSON object in ASCII, with a line end at its end.

    Its keys are those of `Report`, in `steps` those of `Step`.
    """
    return json.dumps(asdict(report), indent=2) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"{report.subject} on node {report.node}"
    subject = ""
    for step in report.steps:
        if step.subject != subject:
            subject = step.subject
            yield ""
            yield subject
        yield f"{step.verdict.value:8}{step.title}: {step.summary}"
        yield from details(step.evidence, step.advice)
    yield ""
    yield f"{report.verdict.value}: {report.conclusion}"


def details(evidence: Sequence[str], advice: str) -> Iterator[str]:
    """What stands for people below the line that they belong to; not escaped yet."""
    yield from (f"{'':10}{line}" for line in evidence[:MOST_EVIDENCE])
    if len(evidence) > MOST_EVIDENCE:
        yield f"{'':10}and {len(evidence) - MOST_EVIDENCE} more"
    if advice:
        yield f"{'':8}> {advice}"
