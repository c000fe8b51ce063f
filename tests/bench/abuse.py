"""What a client that behaves waits while others do not: `python -m tests.bench.abuse`.

`python -m vipscope` with 5,000 Services of 13 endpoints and a web configuration file of one user.
The client scrapes over one connection; those that mean harm have another address and a process of
their own.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import bcrypt

from tests.bench.exporter import receive, status
from tests.bench.nftables import ENDPOINTS, PORT, SERVICES, environment, exporter
from tests.lab import abuse, rulesets
from tests.lab.namespace import Namespace

KINDS = {
    "scrapers": "200 scrapers at once",
    "connects": "connections opened and dropped",
    "slow_readers": "100 that take no answer",
    "slow_writers": "100 that never end a request",
    "nonsense": "what is no HTTP",
    "guesses": "wrong passwords",
}
"""Kinds of `tests.lab.abuse`, and what to call them."""
USER = "prometheus:secret"
COST = 10
"""Of the password's hash, which is what htpasswd is told in the README."""
SECONDS = 6.0
"""For each kind of abuse."""
PAUSE = 0.01
"""Seconds between a scrape's end and the next one's begin."""


class Measurement(TypedDict):
    """Seconds and bytes."""

    undisturbed_p99_seconds: float
    p99_seconds: Mapping[str, float]
    """By kind of abuse."""
    outcomes: Mapping[str, str]
    """What came of it for those who did it."""
    resident_before: int
    """After the first crowd of scrapers."""
    resident_after: int


def measure() -> Measurement:
    """Load the ruleset into a network namespace, and measure in it."""
    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(SERVICES, ENDPOINTS)))
        return namespace.call(_measure, namespace)


def _measure(namespace: Namespace) -> Measurement:
    with TemporaryDirectory() as directory:
        path = Path(directory, "web.yml")
        name, _, password = USER.partition(":")
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(COST)).decode()
        path.write_text(f"basic_auth_users:\n  {name}: {hashed}\n")
        with exporter(namespace, f"--web.config.file={path}") as process:
            alone = _scrape_seconds()
            _abuse("scrapers", seconds=0.0).communicate()
            before = status(process.pid, "VmRSS")
            found, outcomes = {}, {}
            for kind in KINDS:
                abuser = _abuse(kind)
                time.sleep(0.5)  # its own start
                found[kind] = _p99(_scrape_seconds())
                outcomes[kind] = abuser.communicate()[0].strip()
            return {
                "undisturbed_p99_seconds": _p99(alone),
                "p99_seconds": found,
                "outcomes": outcomes,
                "resident_before": before,
                "resident_after": status(process.pid, "VmRSS"),
            }


def _abuse(kind: str, seconds: float = SECONDS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", abuse.__name__, kind, str(PORT)),
            *(f"--user={USER}", f"--seconds={seconds}"),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )


def _scrape_seconds() -> list[float]:
    """Seconds of each scrape, for nearly as long as the abuse lasts."""
    sent = abuse.request("/metrics", abuse.credentials(*USER.split(":")), close=False)
    seconds = []
    with socket.create_connection(("127.0.0.1", PORT), source_address=("127.0.0.2", 0)) as client:
        end = time.monotonic() + SECONDS - 1.0
        while (began := time.monotonic()) < end:
            client.sendall(sent)
            receive(client)
            seconds.append(time.monotonic() - began)
            time.sleep(PAUSE)
    return seconds


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))  # noqa: T201 - a command prints
