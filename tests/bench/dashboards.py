"""How long a fleet's dashboards make Prometheus work: `python -m tests.bench.dashboards`.

A simulated day of 1,000 nodes with all that the rules record of it, asked what each panel asks.
Making it takes some minutes and some gigabytes of disk; the time of a query is wall time on
loopback, its answer included.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

from tests.dashboards import store
from tests.dashboards.asking import answer, wanted
from tests.dashboards.rendered import BOARDS, SETTINGS, asked
from tests.dashboards.store import Store

NODES = 1000


class Measurement(TypedDict):
    """Of all queries of all panels. Seconds."""

    queries: int
    median: float
    longest: float
    slowest: str
    """The query that took longest."""
    dashboard: float
    """All queries of the dashboard that takes longest, one after another."""


def measure(nodes: int = NODES) -> Measurement:
    """Make the history and ask it everything."""
    with tempfile.TemporaryDirectory() as directory:
        store.make(Path(directory), nodes, SETTINGS, wanted())
        with Store(Path(directory)) as prometheus:
            taken = {
                query: answer(prometheus, query)[1] for board in BOARDS for query in asked(board)
            }
    slowest = max(taken, key=taken.__getitem__)
    by_board = (
        sum(seconds for query, seconds in taken.items() if query.board == board) for board in BOARDS
    )
    return Measurement(
        queries=len(taken),
        median=statistics.median(taken.values()),
        longest=taken[slowest],
        slowest=str(slowest),
        dashboard=max(by_board),
    )


if __name__ == "__main__":
    for name, value in measure(*map(int, sys.argv[1:])).items():
        print(f"{name}: {value}")  # noqa: T201 - a command prints
