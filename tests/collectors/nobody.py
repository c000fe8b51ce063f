"""Calls without any privilege."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from tests.lab.remote import answer, outcome

_T = TypeVar("_T")
_NOBODY = 65534


def as_nobody(function: Callable[[], _T]) -> _T:
    """Call the function in a child process that has no privileges. Needs root.

    What it returns or raises must be picklable and small.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setuid(_NOBODY)
        os.write(sender, answer(function, ()))
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    result: _T = outcome(message)
    return result
