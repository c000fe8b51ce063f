"""The rendered dashboards, as whoever imports them reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alerts.settings import Settings
from dashboards import render

SETTINGS = Settings()
FILES = render.files(SETTINGS)
BOARDS: Mapping[str, dict[str, Any]] = {
    Path(path).stem: json.loads(text) for path, text in FILES.items() if path.endswith(".json")
}
"""uid -> the dashboard."""

_VALUE = re.compile(r"Value( #[A-Z])?")


@dataclass(frozen=True)
class Asked:
    """A query of a panel."""

    board: str
    panel: str
    kind: str
    expr: str
    instant: bool
    labels: tuple[str, ...]
    """Those that the legend or the table shows."""

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}: {self.expr}"


def panels(board: str) -> list[dict[str, Any]]:
    """All panels but the headings of rows."""
    return [each for each in BOARDS[board]["panels"] if each["type"] != "row"]


def asked(board: str) -> list[Asked]:
    """Every query of every panel."""
    return [
        Asked(
            board,
            panel["title"],
            panel["type"],
            target["expr"],
            target["instant"],
            (*re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]), *_shown(panel)),
        )
        for panel in panels(board)
        for target in panel.get("targets", ())
    ]


def _shown(panel: Mapping[str, Any]) -> list[str]:
    """The label columns of a table."""
    return [
        name
        for each in panel["transformations"]
        if each["id"] == "filterFieldsByName"
        for name in each["options"]["include"]["names"]
        if not _VALUE.fullmatch(name)
    ]
