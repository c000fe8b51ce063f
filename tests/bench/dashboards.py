"""How long a fleet's dashboards make Prometheus work.

A simulated day of 1,000 nodes with all that the rules record of it, asked what each panel asks.
Making it takes some minutes and some gigabytes of disk; the time of a query is wall time on
loopback, its answer included.
"""

from __future__ import annotations

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
    longest: float
    """One query."""
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
    by_board = (
        sum(seconds for query, seconds in taken.items() if query.board == board) for board in BOARDS
    )
    return Measurement(
        queries=len(taken),
        longest=max(taken.values()),
        dashboard=max(by_board),
    )
