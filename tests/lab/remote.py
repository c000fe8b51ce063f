"""Calls that are answered in another process: the two ends of the wire."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any


class LabError(RuntimeError):
    """The laboratory could not do what a test asked for; the message holds the tool's stderr."""


def answer(function: Callable[..., object], arguments: tuple[Any, ...]) -> bytes:
    """Call the function and pickle what it returns or raises, with the traceback as a note."""
    try:
        return pickle.dumps((True, function(*arguments)))
    except BaseException as error:  # noqa: BLE001 - also what pytest.fail and sys.exit raise
        error.add_note(traceback.format_exc())
        try:
            return pickle.dumps((False, error))
        except (pickle.PicklingError, TypeError, AttributeError):  # it cannot be pickled
            return pickle.dumps((False, LabError(traceback.format_exc())))


def outcome(message: bytes) -> Any:
    """Return what the function returned, or raise what it raised."""
    succeeded, value = pickle.loads(message)
    if not succeeded:
        raise value
    return value
