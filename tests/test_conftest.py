"""In CI a skip is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SKIPS = """
import pytest

def test_skips():
    pytest.skip("no such tool")

@pytest.mark.skipif(True, reason="no such kernel")
def test_is_skipped():
    raise AssertionError

@pytest.mark.xfail(reason="known")
def test_fails_as_expected():
    raise AssertionError
"""


def outcome(tmp_path: Path, text: str, ci: str) -> str:
    (tmp_path / "test_it.py").write_text(text)
    # Not cloudcoil's plugin, which pyproject.toml switches off too.
    plugins = ("-p", "no:cloudcoil", "-p", "tests.conftest")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-q", str(tmp_path)],
        env={**os.environ, "CI": ci, "PYTHONPATH": f"{ROOT / 'exporter'}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_a_skip_is_a_skip_elsewhere(tmp_path: Path) -> None:
    assert "2 skipped, 1 xfailed" in outcome(tmp_path, SKIPS, "")


def test_a_skip_is_a_failure_in_ci(tmp_path: Path) -> None:
    printed = outcome(tmp_path, SKIPS, "true")
    assert "1 failed, 1 xfailed, 1 error" in printed
    assert "in CI a skip is a failure: Skipped: no such tool" in printed
    assert "no such kernel" in printed


@pytest.mark.parametrize(("ci", "end"), [("", "1 skipped"), ("true", "1 error")])
def test_so_is_the_skip_of_a_whole_file(tmp_path: Path, ci: str, end: str) -> None:
    text = "import pytest\npytest.skip('not here', allow_module_level=True)\n"
    assert end in outcome(tmp_path, text, ci)
