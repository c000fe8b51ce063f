"""Cost of the node role as a whole: `python -m tests.bench.node`.

`python -m vipscope --role=node` in a network namespace that holds 5,000 Services of 13 endpoints as
kube-proxy writes them in mode iptables (backend nft), with an API server that has the same.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from tests.bench.exporter import cpu_seconds, status
from tests.bench.nftables import ENDPOINTS, PORT, SERVICES, exporter
from tests.lab import rulesets
from tests.lab.apiserver import ApiServer, api_objects, captured, kubeconfig
from tests.lab.namespace import Namespace
from vipscope import metrics as m

PATIENCE = 120.0
"""Seconds."""
AGREED = (
    m.COLLECTOR_STATE.select(collector="drift", state="ok") + " 1",
    m.DRIFT_SERVICES.select(kind="missing") + " 0",
    m.DRIFT_SERVICES.select(kind="orphaned") + " 0",
)
"""What /metrics says once all is compared, and agrees."""


class Measurement(TypedDict):
    """CPU seconds of the process, bytes of memory."""

    compared_cpu_seconds: float
    """From the start of the process until all is counted, listed and compared."""
    resident_peak: int


def measure() -> Measurement:
    """Load the ruleset into a network namespace, and measure in it."""
    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(SERVICES, ENDPOINTS)))
        return namespace.call(_measure, namespace)


def _measure(namespace: Namespace) -> Measurement:
    objects = {
        **api_objects(rulesets.cluster(SERVICES, ENDPOINTS)),
        "nodes": captured()["nodes"],
    }
    with ApiServer(objects) as server, TemporaryDirectory() as directory:
        path = kubeconfig(Path(directory), server.url)
        flags = ("--role=node", "--node-name=node1", f"--kubeconfig={path}", "--drift.grace=0")
        with exporter(namespace, *flags) as process:
            _wait_until_compared()
            return {
                "compared_cpu_seconds": cpu_seconds(process.pid),
                "resident_peak": status(process.pid, "VmHWM"),
            }


def _wait_until_compared() -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics") as answer:
            text = answer.read().decode()
        if all(re.search(f"^{re.escape(line)}", text, re.MULTILINE) for line in AGREED):
            return
        time.sleep(0.2)
    raise AssertionError("kernel and API are not found to agree")


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))  # noqa: T201 - a command prints
