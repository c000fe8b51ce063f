"""Whether the names of ExternalName Services resolve."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection, Mapping
from typing import NoReturn

from vipscope.worker import BusyError, Worker

INTERVAL = 60.0
"""Seconds between two rounds: what a resolver caches is seldom older."""
TIMEOUT = 5.0
"""Seconds that a name is waited for."""
_NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)


class Resolver:
    """Looks names up, one at a time and each once a round, however many Services have it.

    It asks the resolver of this process, as a pod that is not on the host's network asks the
    cluster's DNS. Only a plain no is a no: a server that does not answer says nothing of a name.
    """

    def __init__(self, resolve: Callable[[str], bool | None] | None = None) -> None:
        self._resolve = resolve or resolve_name
        self._worker = Worker("resolver")

    async def follow(
        self,
        names: Callable[[], Collection[str]],
        tell: Callable[[Mapping[str, bool | None]], None],
    ) -> NoReturn:
        """Look up all `names()` and `tell` whether each resolves, None: unknown; for ever."""
        while True:
            tell({name: await self._ask(name) for name in names()})
            await asyncio.sleep(INTERVAL)

    def close(self) -> None:
        """End the thread. A look-up that hangs does not hold it up."""
        self._worker.stop()

    async def _ask(self, name: str) -> bool | None:
        # Busy: the name before still hangs.
        with contextlib.suppress(TimeoutError, BusyError):
            async with asyncio.timeout(TIMEOUT):
                return await self._worker.run(self._resolve, name)
        return None


def resolve_name(name: str) -> bool | None:
    """Whether a name has an address of any family; None while that cannot be told. Blocks."""
    try:
        # The dot: clients get the name as it is, and no search domain is tried on it.
        socket.getaddrinfo(f"{name.rstrip('.')}.", None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return False if error.errno in _NO_SUCH_NAME else None
    except (OSError, UnicodeError):
        return None
    return True
