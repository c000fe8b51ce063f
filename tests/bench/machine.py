"""What figures hold for."""

from __future__ import annotations

import datetime
import os
import platform


def describe() -> str:
    """The machine, its load and the date, in a sentence."""
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load average {os.getloadavg()[2]:.1f}, {today}."
    )
