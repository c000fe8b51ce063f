"""Doors into the node: ports of this machine's loopback that lead to ports of the namespace's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from tests.lab.namespace import Namespace


@contextlib.contextmanager
def opened(namespace: Namespace, ports: Sequence[int]) -> Iterator[dict[int, str]]:
    """Address on this machine by the namespace's port: the same number where it is free.

    The sockets that listen are made here and handed to a process in the namespace.
    """
    with contextlib.ExitStack() as stack:
        listening = {port: stack.enter_context(_listen(port)) for port in ports}
        namespace.popen(
            sys.executable,
            "-m",
            "demo.doors",
            *(f"{each.fileno()}={port}" for port, each in listening.items()),
            pass_fds=[each.fileno() for each in listening.values()],
            stderr=subprocess.DEVNULL,  # Ctrl-C ends it, too
        )
        yield {port: f"127.0.0.1:{each.getsockname()[1]}" for port, each in listening.items()}


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:  # somebody else has it
        return socket.create_server(("127.0.0.1", 0))


async def _serve(doors: Sequence[str]) -> None:
    for door in doors:
        descriptor, port = map(int, door.split("="))
        listening = socket.socket(fileno=descriptor)
        await asyncio.start_server(partial(_join, port), sock=listening)
    await asyncio.Event().wait()


async def _join(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes to and fro until both sides are done."""
    try:
        there, back = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_carry(reader, back), _carry(there, writer))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
