"""Waiting for what takes its time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait(condition: Callable[[], object], seconds: float, why: Callable[[], object] = str) -> None:
    """Wait until the condition holds. Raises TimeoutError with what `why` says then."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s: {why()}")
        time.sleep(0.2)
