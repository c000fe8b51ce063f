"""Exporters of a whole fleet, in one process: what one real node said, told of many.

Of a node there are two scrapes, some seconds apart. Each node of the fleet goes on from the first
as the real one went on to the second, at a pace of its own: counters and buckets grow, gauges go to
and fro between the two values, and what did not change stays.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from tests.lab.prometheus import free_address
from tests.lab.waiting import wait

GZIP_LEVEL = 1


class Moving(NamedTuple):
    """A series whose value has changed."""

    series: str
    before: float
    after: float
    grows: bool
    whole: bool

    def at(self, step: float, toss: int) -> str:
        """The value so many scrapes after the first one; a gauge's by chance."""
        share = step if self.grows else float(toss % 2)
        value = self.before + (self.after - self.before) * share
        return str(int(value)) if self.whole else repr(value)


class Sample(NamedTuple):
    """A line of an exposition."""

    series: str
    value: str
    grows: bool
    """Of a counter or a histogram."""


def samples(text: str) -> Iterator[Sample]:
    """The samples of an exposition in Prometheus's text format."""
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            kinds[family] = kind
        elif line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            family = re.sub("_(bucket|sum|count)$", "", name)
            grows = {kinds.get(name), kinds.get(family)} & {"counter", "histogram"}
            yield Sample(series, value, bool(grows))


@dataclass(frozen=True)
class Node:
    """What one real node said at two scrapes."""

    still: Sequence[str]
    """Samples as they are in either."""
    moving: Sequence[Moving]

    @classmethod
    def of(cls, first: str, second: str) -> Node:
        """Of two expositions. A series that is in one of them alone stays as it is there."""
        before = {each.series: each for each in samples(first)}
        after = {each.series: each for each in samples(second)}
        still, moving = [], []
        for series, now in (before | after).items():
            then = before.get(series, now)
            if then.value == now.value:
                still.append(f"{series} {now.value}")
                continue
            values = float(then.value), float(now.value)
            whole = all(value.is_integer() for value in values)
            moving.append(Moving(series, *values, now.grows, whole))
        return cls(still, moving)

    def exposition(self, number: int, step: float, timestamp: str = "") -> str:
        """What node `number` says so many scrapes after the first, a blank before a timestamp."""
        pace = 0.5 + number % 97 / 97
        toss = zlib.crc32(f"{number} {int(step)}".encode())
        lines = [
            f"{each.series} {each.at(pace * step, toss >> i % 32)}{timestamp}"
            for i, each in enumerate(self.moving)
        ]
        still = [f"{each}{timestamp}" for each in self.still] if timestamp else self.still
        return "\n".join((*still, *lines, ""))


def targets(address: str, nodes: Mapping[str, str], job: str = "vipscope") -> list[dict[str, Any]]:
    """Targets for Prometheus: nodes (name -> cluster) of the fleet at this address."""
    return [
        {
            "targets": [address],
            "labels": {
                "__metrics_path__": f"/{number}",
                "instance": f"10.{number >> 8}.{number & 255}.1:9908",
                "job": job,
                "cluster": cluster,
                "node": node,
            },
        }
        for number, (node, cluster) in enumerate(nodes.items())
    ]


@contextmanager
def fleet(first: str, second: str, seconds: float, hurry: float = 0) -> Iterator[str]:
    """The address of a fleet whose one node said `first` and, so many seconds later, `second`.

    With `hurry` it tells the times of its samples, from so many seconds ago on: each scrape is
    `seconds` after the one before, however soon it comes.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "node.json")
        file.write_text(json.dumps([first, second, seconds, hurry]))
        address = free_address()
        argv = [sys.executable, "-m", __spec__.name, address, str(file)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                wait(process.stdout.readline, 30)
                yield address
            finally:
                process.terminate()


async def _serve(address: str, node: Node, seconds: float, hurry: float) -> None:
    begun = time.time()
    asked: dict[int, int] = {}

    async def answer(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        if hurry:
            step = float(asked.get(number, 0))
            asked[number] = int(step) + 1
            timestamp = f" {(begun - hurry + step * seconds) * 1000:.0f}"
        else:
            step, timestamp = (time.time() - begun) / seconds, ""
        text = node.exposition(number, step, timestamp)
        body = gzip.compress(text.encode(), GZIP_LEVEL)
        headers = {"Content-Encoding": "gzip", "Content-Type": "text/plain; version=0.0.4"}
        return web.Response(body=body, headers=headers)

    app = web.Application()
    app.router.add_get("/{number}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = address.partition(":")
    await web.TCPSite(runner, host, int(port)).start()
    print("ready", flush=True)  # noqa: T201 - who started this waits for it
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    first, second, *pace = json.loads(arguments.file.read_text())
    asyncio.run(_serve(arguments.address, Node.of(first, second), *pace))
