"""A real Prometheus on loopback, with a configuration of the test's."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from alerts import render
from tests.lab.monitoring import wait

PATIENCE = 60.0
"""Seconds."""

Labels = Mapping[str, str]


def missing() -> str:
    """What this machine lacks, in words; "" when nothing."""
    return "" if shutil.which("prometheus") else "prometheus is not installed"


def free_address() -> str:
    """An address on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


class Prometheus(contextlib.AbstractContextManager["Prometheus"]):
    """Runs in `directory`, where it keeps its data below `data`."""

    def __init__(self, directory: Path, config: Mapping[str, Any], *flags: str) -> None:
        self.address = free_address()
        self.url = f"http://{self.address}"
        self._directory = directory
        self._flags = flags
        (directory / "prometheus.yaml").write_text(render.to_yaml(config))

    def __enter__(self) -> Self:
        log = self._directory / "prometheus.log"
        with log.open("w") as out:
            self._process = subprocess.Popen(
                ["prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
                 f"--web.listen-address={self.address}", *self._flags],
                cwd=self._directory, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            wait(self._ready, PATIENCE, log.read_text)
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

    def query(self, expr: str) -> list[tuple[Labels, float]]:
        """(labels, value) of each series that the query yields now."""
        found = self.get("query", query=expr)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def get(self, what: str, **parameters: object) -> Any:
        """The data of an answer of its API."""
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def own(self, name: str) -> list[tuple[Labels, float]]:
        """(labels, value) of its own metric of that name, without a scrape between."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        found = []
        for line in lines:
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name:
                pairs = series.partition("{")[2].rstrip("}")
                found.append((_labels(pairs), float(value)))
        return found

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False


def _labels(pairs: str) -> Labels:
    return {
        name: value.strip('"')
        for name, _, value in (pair.partition("=") for pair in pairs.split(",") if pair)
    }
