"""`vipscope doctor`: reads everything once, and tells what is wrong.

The collectors run as they do for `serve`, until what they see can be judged. They change nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

from vipscope.diagnosis.findings import findings
from vipscope.diagnosis.findings.finding import Severity, count
from vipscope.diagnosis.report import details
from vipscope.logs import escape
from vipscope.runner import Runner
from vipscope.snapshot import Drift, Outcome, Snapshot

IMPATIENCE: Final = 5.0
"""Seconds after which it says what it still waits for."""
SECOND_LOOK: Final = 1.0
"""Seconds that a collector which could not read has for another try: what it needs of a neighbour,
such as kube-proxy's mode, may have come a moment too late for its first."""
AFTER_GRACE: Final = 5.0
"""Seconds after the grace period within which what disagreed all the time is confirmed."""


async def examine(runner: Runner, grace: float, say: Callable[[str], None]) -> Snapshot:
    """Run the collectors until they have told what there is; `say` is told what it waits for.

    Kernel and API may disagree for `grace` seconds: only what lasts longer is drift.
    """
    runner.start()
    try:
        say(f"reading {', '.join(runner.waiting)}")
        while not await _within(IMPATIENCE, runner, lambda _: runner.ready):
            say(f"still waiting for {', '.join(runner.waiting)}")
        await _within(SECOND_LOOK, runner, _has_tried_again(runner.snapshot))
        if not _is_decided(runner.snapshot):
            say(f"kernel and API disagree: waiting {grace:g} s to see whether that lasts")
            # What is still younger then is a change under way, and no finding.
            await _within(grace + AFTER_GRACE, runner, _is_decided)
        return runner.snapshot
    finally:
        await runner.stop()


Condition = Callable[[Snapshot], bool]


async def _within(seconds: float, runner: Runner, condition: Condition) -> bool:
    """Whether a snapshot meets the condition in that time; waits for it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition(runner.snapshot):
                await runner.replaced()
    return condition(runner.snapshot)


def _has_tried_again(first: Snapshot) -> Condition:
    """Whether each collector that could not read has had another try."""
    failed = {
        name: reading
        for name, reading in first.readings.items()
        if reading.outcome not in (Outcome.OK, Outcome.DISABLED)
    }
    return lambda now: all(now.readings[name] is not each for name, each in failed.items())


def _is_decided(snapshot: Snapshot) -> bool:
    """Whether all disagreements of kernel and API have lasted for the grace period."""
    records = (reading.record for reading in snapshot.readings.values())
    return not any(isinstance(record, Drift) and record.undecided for record in records)


class Diagnosis:
    """What a snapshot comes to, as text and as JSON."""

    def __init__(self, snapshot: Snapshot, now: float) -> None:
        self.findings = findings(snapshot, now)
        self._node = snapshot.node.nodename
        self._outcomes = {
            name: reading.outcome
            for name, reading in sorted(snapshot.readings.items())
            if reading.outcome is not Outcome.DISABLED
        }

    @property
    def is_broken(self) -> bool:
        """Whether anything is, beyond warnings."""
        return any(each.severity is Severity.BROKEN for each in self.findings)

    def as_text(self) -> str:
        """For people, with a line end at its end."""
        return "".join(f"{escape(line)}\n" for line in self._lines())

    def as_json(self) -> str:
        """For programs: one JSON object in ASCII, with a line end at its end.

        Its keys are `node`, `verdict` (the worst severity, or ok), `collectors` (name -> outcome)
        and `findings`, in which they are those of `Finding`.
        """
        content = {
            "node": self._node,
            "verdict": self._verdict,
            "collectors": self._outcomes,
            "findings": [asdict(each) for each in self.findings],
        }
        return json.dumps(content, indent=2) + "\n"

    @property
    def _verdict(self) -> str:
        return self.findings[0].severity.value if self.findings else "ok"

    def _lines(self) -> Iterator[str]:
        for each in self.findings:
            yield f"{each.severity.value:8}{each.title} [{each.id}]"
            yield from details(each.evidence, each.advice)
        if self.findings:
            yield ""
        yield f"{self._verdict}: {self._conclusion()}"

    def _conclusion(self) -> str:
        read = [name for name, outcome in self._outcomes.items() if outcome is Outcome.OK]
        looked = f"on node {self._node}, as {', '.join(read) or 'nothing'} showed it"
        found = [sum(each.severity is one for each in self.findings) for one in Severity]
        parts = [
            f"{number} {one.value}" for one, number in zip(Severity, found, strict=True) if number
        ]
        if not parts:
            return f"nothing is wrong {looked}"
        return f"{count(len(self.findings), 'finding')} ({', '.join(parts)}) {looked}"
