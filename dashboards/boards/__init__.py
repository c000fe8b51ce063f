"""The dashboards, one a file."""

from __future__ import annotations

from collections.abc import Callable

from alerts.settings import Settings
from dashboards.boards import (
    endpointslices,
    exporter,
    fleet,
    ipvs_conntrack,
    latency,
    migration,
    node,
    service,
)
from dashboards.panels import Board

ALL: tuple[Callable[[Settings], Board], ...] = (
    fleet.board,
    latency.board,
    node.board,
    service.board,
    endpointslices.board,
    ipvs_conntrack.board,
    migration.board,
    exporter.board,
)
"""In the order in which one looks at them."""
