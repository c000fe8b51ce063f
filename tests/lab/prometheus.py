"""A real Prometheus: how it is started and asked; and one on loopback, as a test configures it."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from alerts import render
from tests.lab.waiting import wait

PATIENCE = 60.0
"""Seconds."""

Labels = dict[str, str]


def missing(*commands: str) -> str:
    """Which of these this machine lacks, in words; "" when none."""
    return ", ".join(f"{each} is not installed" for each in commands if not shutil.which(each))


def command(address: str, *flags: str) -> list[str]:
    """What starts it in a directory with its prometheus.yaml; it keeps its data below `data`."""
    return [
        "prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
        f"--web.listen-address={address}", *flags,
    ]  # fmt: skip


def read(url: str, post: bytes | None = None) -> bytes:
    """What is there, or answers this JSON."""
    request = urllib.request.Request(url, post, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        body: bytes = answer.read()
    return body


class Api:
    """What is to be asked of a server at `url`; `through` does as `read` does, or elsewhere."""

    def __init__(self, url: str, through: Callable[[str, bytes | None], bytes] = read) -> None:
        self.url = url
        self._through = through

    def read(self, path: str, post: bytes | None = None) -> bytes:
        """What is at the path, or answers this JSON."""
        return self._through(f"{self.url}{path}", post)

    def is_ready(self) -> bool:
        """Whether it says so; also of Alertmanager."""
        try:
            self.read("/-/ready")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def get(self, what: str, **parameters: object) -> Any:
        """The data of an answer of Prometheus's API."""
        return json.loads(self.read(f"/api/v1/{what}?{urllib.parse.urlencode(parameters)}"))["data"]

    def query(self, expr: str) -> list[tuple[Labels, float]]:
        """(labels, value) of each series that the query yields now."""
        found = self.get("query", query=expr)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]


def free_address() -> str:
    """An address on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


class Prometheus(Api, contextlib.AbstractContextManager["Prometheus"]):
    """Runs in `directory`, on loopback."""

    def __init__(self, directory: Path, config: Mapping[str, Any], *flags: str) -> None:
        self.address = free_address()
        super().__init__(f"http://{self.address}")
        self._directory = directory
        self._flags = flags
        (directory / "prometheus.yaml").write_text(render.to_yaml(config))

    def __enter__(self) -> Self:
        log = self._directory / "prometheus.log"
        with log.open("w") as out:
            self._process = subprocess.Popen(
                command(self.address, *self._flags),
                cwd=self._directory, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            wait(self.is_ready, PATIENCE, log.read_text)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def own(self, name: str) -> list[tuple[Labels, float]]:
        """(labels, value) of its own metric of that name, without a scrape between."""
        found = []
        for line in self.read("/metrics").decode().splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name:
                pairs = series.partition("{")[2].rstrip("}")
                found.append((_labels(pairs), float(value)))
        return found


def _labels(pairs: str) -> Labels:
    return {
        name: value.strip('"')
        for name, _, value in (pair.partition("=") for pair in pairs.split(",") if pair)
    }
