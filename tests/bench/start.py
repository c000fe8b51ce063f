"""Cost of a start as a DaemonSet's container: `python -m tests.bench.start`.

The image is made of the Dockerfile, and run as the chart says in a network namespace with the
captured rules of a small cluster. What counts is the process from its start until each collector
has had an outcome and the API has been compared with the kernel.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from tests.bench.exporter import cpu_seconds, status
from tests.helm.chart import Object, one, render
from tests.helm.workload import DOCKERFILE, TOKEN, container_of
from tests.lab.apiserver import ApiServer, Certificate, captured
from tests.lab.image import Image, build
from tests.lab.namespace import Namespace
from vipscope import metrics as m

CAPTURES = Path(__file__).parents[1] / "captures" / "iptables"
PATIENCE = 60.0
"""Seconds."""
METRICS = "http://127.0.0.1:9908/metrics"


class Measurement(TypedDict):
    """CPU seconds of the process, bytes of memory."""

    start_cpu_seconds: float
    resident_peak: int


def measure() -> Measurement:
    """Make the image and start it."""
    workload = one(render(), "DaemonSet")
    with TemporaryDirectory() as directory, Namespace() as namespace:
        namespace.restore((CAPTURES / "small.v4.save").read_text())
        namespace.restore((CAPTURES / "small.v6.save").read_text(), family="ipv6")
        certificate = Certificate.make(Path(directory))
        with build(DOCKERFILE, Path(directory)) as image:
            return namespace.call(_measure, workload, image, certificate)


def _measure(workload: Object, image: Image, certificate: Certificate) -> Measurement:
    with (
        ApiServer(captured(), token=TOKEN, certificate=certificate) as server,
        container_of(workload, image, server, certificate).start() as (_, pid),
    ):
        _wait_until_compared()
        return {"start_cpu_seconds": cpu_seconds(pid), "resident_peak": status(pid, "VmHWM")}


def _wait_until_compared() -> None:
    compared = re.escape(m.COLLECTOR_STATE.select(collector="drift", state="ok") + " 1")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(METRICS) as answer:
                if re.search(f"^{compared}", answer.read().decode(), re.MULTILINE):
                    return
        except urllib.error.URLError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise AssertionError("kernel and API are not compared")


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))  # noqa: T201 - a command prints
