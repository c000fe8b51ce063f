"""`python -m alerts`: render rules and examples, with other settings when told so."""

from __future__ import annotations

from pathlib import Path

from alerts.command import Command
from alerts.render import files

COMMAND = Command("alerts", __doc__, Path(__file__).parent, files)

if __name__ == "__main__":
    COMMAND.main()
