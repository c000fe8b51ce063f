"""tools/setup, where it cannot set up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_who_is_not_root_and_has_no_venv_is_told_what_to_install_and_what_works_then(
    tmp_path: Path,
) -> None:
    scripts = {"id": "echo 1000", "python3": 'case "$*" in *ensurepip*) exit 1; esac'}
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"VENV={tmp_path}/venv"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    for said in ("apt-get install python3-venv", "make run ", "make test ", "make demo needs root"):
        assert said in done.stderr
    assert not (tmp_path / "venv").exists()
