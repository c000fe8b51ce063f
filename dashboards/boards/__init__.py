"""The dashboards, one a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

ALL: Mapping[str, Callable[[Settings], Board]] = {
    "fleet": fleet.board,
    "latency": latency.board,
    "node": node.board,
    "service": service.board,
    "endpointslices": endpointslices.board,
    "ipvs-conntrack": ipvs_conntrack.board,
    "migration": migration.board,
    "exporter": exporter.board,
}
"""File name, without its ending -> the dashboard, in the order in which one looks at them."""
