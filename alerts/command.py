"""The command lines of `python -m alerts` and `python -m dashboards`: render with settings."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alerts.settings import Settings

RENDERED = "rendered"
"""The directory in which nothing else lies."""


@dataclass(frozen=True)
class Command:
    """A package that renders files."""

    name: str
    text: str
    here: Path
    """Where the files are that are committed."""
    files: Callable[[Settings], Mapping[str, str]]
    """Path below the directory -> text. Raises ValueError for settings that make no sense."""

    def write(self, settings: Settings, directory: Path | None = None) -> None:
        """Write all files below `directory`, and remove rendered ones that are no longer made."""
        directory = directory or self.here
        rendered = self.files(settings)
        for old in directory.glob(f"{RENDERED}/*"):
            if str(old.relative_to(directory)) not in rendered:
                old.unlink()
        for path, text in rendered.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(text)

    def parse(self, arguments: Sequence[str]) -> tuple[Settings, Path]:
        """Settings and directory of a command line: each field of Settings is a flag."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.name}", description=self.text)
        parser.add_argument("--directory", type=Path, default=self.here, help="where to write")
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

    def main(self) -> None:
        """Render, or say in one line what is wrong."""
        try:
            self.write(*self.parse(sys.argv[1:]))
        except ValueError as error:
            sys.exit(f"python -m {self.name}: {error}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
