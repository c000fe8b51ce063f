"""`python -m dashboards`: render dashboards and Grafana's alerts, with the rules' settings."""

from __future__ import annotations

from pathlib import Path

from alerts.command import Command
from dashboards.render import files

COMMAND = Command("dashboards", __doc__, Path(__file__).parent, files)

if __name__ == "__main__":
    COMMAND.main()
