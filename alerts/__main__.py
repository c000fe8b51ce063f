"""`python -m alerts`: render rules and examples, with other settings when told so."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alerts.render import files
from alerts.settings import Settings

HERE = Path(__file__).parent


def write(settings: Settings, directory: Path = HERE) -> None:
    """Write all files below `directory`, and remove rendered ones that are no longer made."""
    rendered = files(settings)
    for old in directory.glob("rendered/*.yaml"):
        if str(old.relative_to(directory)) not in rendered:
            old.unlink()
    for path, text in rendered.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)


def parse(arguments: Sequence[str]) -> tuple[Settings, Path]:
    """Settings and directory of a command line: each field of Settings is a flag."""
    parser = argparse.ArgumentParser(prog="python -m alerts", description=__doc__)
    parser.add_argument("--directory", type=Path, default=HERE, help="where to write")
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_names if field.name == "sources" else type(field.default),
            default=field.default,
            help=f"default: {field.default}",
        )
    given: Mapping[str, Any] = vars(parser.parse_args(arguments))
    names = (field.name for field in dataclasses.fields(Settings))
    return Settings(**{name: given[name] for name in names}), given["directory"]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main() -> None:
    """Render, or say in one line what is wrong."""
    try:
        write(*parse(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"python -m alerts: {error}")


if __name__ == "__main__":
    main()
