"""Measure, and print the figures of docs/scale.md: `python -m tests.bench.scale [--write]`."""

from __future__ import annotations

import argparse

from tests.bench import machine
from tests.bench.scale import report
from tools.generate import ROOT, replace_region

PAGE = ROOT / "docs" / "scale.md"


def page(text: str, measured: report.Measured) -> str:
    """The page with its generated regions renewed."""
    regions = {**report.regions(measured), "machine": f"{machine.describe()}\n"}
    for name, content in regions.items():
        text = replace_region(text, name, content)
    return text


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put them into {PAGE.name}")
    write = parser.parse_args().write
    measured = report.measure()
    for name, content in report.regions(measured).items():
        print(f"{name}\n{content}")  # noqa: T201 - a command prints
    if write:
        PAGE.write_text(page(PAGE.read_text(), measured))


if __name__ == "__main__":
    main()
