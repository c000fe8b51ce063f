"""SECURITY.md names every package that is installed, and says rightly what of it is loaded."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| ([a-z0-9, -]+) \| (always|with an API server|never) \|", re.MULTILINE)


def told() -> dict[str, str]:
    """When each package is loaded, by what SECURITY.md says."""
    rows = ROW.findall((ROOT / "SECURITY.md").read_text())
    return {name: when for names, when in rows for name in names.split(", ")}


def modules(package: str) -> set[str]:
    found = importlib.metadata.packages_distributions().items()
    return {module for module, names in found if package in map(_normal, names)}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def test_every_pinned_package_is_listed_with_a_reason() -> None:
    pinned = re.findall(
        r"^([a-z0-9-]+)==", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE
    )
    assert sorted(told()) == sorted(pinned)


@pytest.mark.parametrize("api", [False, True])
def test_what_is_loaded_is_what_is_told(api: bool) -> None:
    script = "import sys, vipscope.cli\n"
    if api:
        script += (
            "from vipscope.kube import client\n"
            "client._import_without_the_synchronous_client()\n"
            "from kubernetes.aio import client, config\n"
        )
    script += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT / "exporter")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {*done.stdout.split()}
    for package, when in told().items():
        expected = when == "always" or (api and when == "with an API server")
        assert bool(modules(package) & loaded) is expected, package
