"""Reading files of procfs, with what can go wrong told in a collector's terms.

Files are opened anew for each read: that costs some 10 µs and stays right when a module is unloaded
and loaded again, which leaves a file that is kept open dead for good.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from vipscope.snapshot import AbsentError, BrokenError, DeniedError

COUNTER: Final = 1 << 32
"""At which a counter of 32 bits, one of a CPU's, begins anew."""
CHUNK = 65536
"""Bytes of one read; the kernel gives less at a time, mostly a page."""

_NUMBER = re.compile(rb"-?[0-9]{1,20}\n?")


def read(path: Path) -> bytes:
    """The whole file. Raises AbsentError when there is none, DeniedError when it is not for us."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise AbsentError(f"no {path}") from None
    except PermissionError as error:
        raise DeniedError(f"{path}: {error.strerror}") from None
    try:
        return b"".join(iter(lambda: os.read(handle, CHUNK), b""))
    finally:
        os.close(handle)


def number(path: Path) -> int:
    """The decimal number that is the whole file. Raises as read(), BrokenError when it is none."""
    text = read(path)
    if not _NUMBER.fullmatch(text):
        raise BrokenError(f"{path} is no number: {text[:40]!r}")
    return int(text)
