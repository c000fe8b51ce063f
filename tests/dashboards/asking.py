"""Asking a Prometheus what a panel asks, as Grafana does."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from alerts import links
from alerts import render as rules
from tests.dashboards import history, store
from tests.dashboards.rendered import FILES, SETTINGS, Asked
from tests.dashboards.store import Sample, Store

STEP = 120
"""Seconds between points of a day on a screen of 720 pixels."""
SECONDS = 1.0
"""In which Prometheus must answer."""

NODE_OF = {
    links.IPVS_CONNTRACK: history.name(history.IPVS),
    links.MIGRATION: history.name(history.LEFTOVER),
}
"""The node that is chosen; elsewhere one that drifts."""


def wanted() -> set[str]:
    """Whatever rules and dashboards ask for."""
    texts = (*rules.files(SETTINGS).values(), *FILES.values())
    return {name for text in texts for name in store.NAME.findall(text)}


def filled_in(expr: str, board: str, node: str = "") -> str:
    """The query as Grafana sends it."""
    variables = {
        "cluster": history.CLUSTER,
        "node": node or NODE_OF.get(board, history.name(history.DRIFTING)),
        "latency_source": "probe",
        "namespace": history.NAMESPACE,
        "service": history.SERVICE,
        "__rate_interval": f"{max(4 * history.MINUTE, STEP + history.MINUTE)}s",
        "__interval": f"{STEP}s",
    }
    return re.sub(r"\$(\w+)", lambda found: variables[found[1]], expr)


def answer(prometheus: Store, query: Asked) -> tuple[list[Sample], float]:
    """Series, and how long they took: if that is long, the better of two tries."""
    expr = filled_in(query.expr, query.board)
    ask: Callable[[], list[Sample]] = (
        (lambda: prometheus.instant(expr))
        if query.instant
        else (lambda: prometheus.course(expr, STEP))
    )
    durations = []
    for _ in range(2):
        begun = time.monotonic()
        found = ask()
        durations.append(time.monotonic() - begun)
        if durations[-1] < SECONDS:
            break
    return found, min(durations)
