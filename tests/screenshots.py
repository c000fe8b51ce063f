"""Pictures of the page for README.md: `make screenshots`.

The exporter watches captured nodes in real kernels, beside a replayed API. An hour is less than a
minute here, so that the lines of the last hour show something.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.lab import browser
from tests.lab.apiserver import ApiServer, kubeconfig
from tests.lab.namespace import Namespace
from tests.test_cli import ENVIRONMENT
from tests.test_doctor import CHAIN, kube_proxy, load_iptables, load_nftables, shell
from vipscope import cli, history, page

PICTURES: Final = Path(__file__).parents[1] / "docs"
URL: Final = "http://127.0.0.1:9908/"
QUICK, FEW = 2.5, 20
"""Seconds from sample to sample, longer than from read to read; and samples in an hour."""
PATIENCE: Final = 30.0
"""Seconds that the page may take to show something."""
SIZE: Final = (1000, 1040)
"""Pixels."""

GROWTH: Final = (
    "iptables-nft -N cali-fw; for i in $(seq 40); "
    "do iptables-nft -A cali-fw -s 10.64.1.$i -j ACCEPT; sleep 1; done; sleep 8"
)
"""Another program's rules become more."""
BREAKS: Final = f"iptables-nft -t nat -F PREROUTING; iptables-nft -t nat -D {CHAIN} 2"
BREAKS_LATE: Final = f"sleep 35; {BREAKS}; sleep 14"

HEALTHY: Final = ("Nothing is wrong",)
BROKEN: Final = ("drift-prerouting", "drift-missing-endpoints")
"""What each page has to show before its picture is taken."""


@contextmanager
def watched(node: str, mode: str, module: str = "vipscope") -> Iterator[None]:
    """In the present namespace: the exporter, which is a module to run, at URL."""
    with tempfile.TemporaryDirectory() as directory, ApiServer() as server, kube_proxy(mode) as url:
        argv = [
            f"--kubeconfig={kubeconfig(Path(directory), server.url)}",
            f"--node-name={node}",
            "--web.listen-address=127.0.0.1:9908",
            "--role=node",
            "--drift.grace=1",
            f"--path.xtables-lock={directory}/xtables.lock",
            f"--kube-proxy.metrics-url={url}",
            f"--kube-proxy.health-url={url}",
            "--log.level=error",
        ]
        process = subprocess.Popen([sys.executable, "-m", module, *argv], env=ENVIRONMENT)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def shows(*texts: str) -> str:
    """The page, once it has all of these. Raises TimeoutError."""
    deadline, shown = time.monotonic() + PATIENCE, ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(URL) as answer:
                shown = answer.read().decode()
        except OSError:
            shown = ""
        if all(text in shown for text in texts):
            return shown
        time.sleep(0.1)
    raise TimeoutError(shown)


def picture(
    node: str, mode: str, script: str, texts: Sequence[str], path: Path, *flags: str
) -> None:
    """In the present namespace: what the page looks like after a script."""
    with watched(node, mode, __spec__.name):
        shows("is as the API wants it")
        shell(script)
        shows(*texts)
        browser.screenshot(URL, path, *SIZE, *flags)


def take(directory: Path, growth: str = GROWTH, breaks: str = BREAKS_LATE) -> None:
    """Take both pictures, each after a script."""
    with Namespace() as node:
        load_nftables(node)
        path = directory / "page-healthy.png"
        node.call(picture, "node2", "nftables", growth, HEALTHY, path)
    with Namespace() as node:
        load_iptables(node)
        path = directory / "page-broken.png"
        node.call(picture, "node1", "iptables", breaks, BROKEN, path, browser.DARK)


def serve(argv: Sequence[str]) -> int:
    """The command, in which time flies."""
    for room in (history, page):
        vars(room).update(INTERVAL=QUICK, LENGTH=FEW)
    return cli.main(argv)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(serve(sys.argv[1:]))
    take(PICTURES)
