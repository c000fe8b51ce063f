"""Images without an engine: what a Dockerfile says, done on an overlay of this machine's own root.

The base image is this machine with its Python. Of each stage only the directories that it wrote are
its own; everything else shows through. Nothing of the machine itself is changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.lab.remote import LabError

BUILD_LIMIT = 600.0
"""Seconds for one instruction: packages are downloaded."""
KEPT = re.compile(r"(?i)pip_\w+|(https?|no|all)_proxy|ssl_cert_\w+|requests_ca_bundle")
"""Variables of this machine without which it does not reach its package index."""


class Instruction(NamedTuple):
    """One of a Dockerfile."""

    word: str
    text: str

    @property
    def paths(self) -> list[str]:
        """The arguments of a COPY without its flags: sources, then destination."""
        return [each for each in self.text.split() if not each.startswith("--")]

    @property
    def source(self) -> str:
        """The stage that a COPY takes from, "" for the build context."""
        match = re.search(r"--from=(\S+)", self.text)
        return match[1] if match else ""


@dataclass
class Stage:
    """FROM and all until the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        """The texts of the instructions of this word."""
        return [each.text for each in self.instructions if each.word == word]


def parse(text: str) -> tuple[Mapping[str, str], list[Stage]]:
    """The global arguments with their defaults, and the stages."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(_substitute(base, arguments), name))
        elif word and stages:
            stages[-1].instructions.append(Instruction(word, rest))
        elif word == "ARG":
            name, _, default = rest.partition("=")
            arguments[name] = default
    return arguments, stages


def _substitute(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: variables.get(match[1], ""), text)


def assignments(text: str) -> dict[str, str]:
    """`A=1 B="x y"` as LABEL, ENV and ARG have it."""
    return dict(each.split("=", 1) for each in shlex.split(text))


@dataclass
class Image:
    """What was built."""

    root: Path
    environment: dict[str, str]
    user: str
    entrypoint: Sequence[str]


@contextlib.contextmanager
def build(dockerfile: Path, directory: Path) -> Iterator[Image]:
    """The last stage of a Dockerfile, with its directory as context, built below `directory`.

    Raises LabError when this machine has no overlays or an instruction fails.
    """
    _, stages = parse(dockerfile.read_text())
    roots: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:
        for i, stage in enumerate(stages):
            root = stack.enter_context(_overlay(directory / f"stage{i}"))
            roots[stage.name] = root
            image = _carry_out(stage, root, roots, dockerfile.parent)
        yield image


def _carry_out(stage: Stage, root: Path, roots: Mapping[str, Path], context: Path) -> Image:
    image, place = Image(root, {"PATH": _path()}, "0", ()), Path("/")
    for instruction in stage.instructions:
        match instruction:
            case ("WORKDIR", text):
                place = place / text
                (root / place.relative_to("/")).mkdir(parents=True, exist_ok=True)
            case ("COPY", _):
                *sources, destination = instruction.paths
                origin = roots[instruction.source] if instruction.source else context
                target = root / (place / destination).relative_to("/")
                for source in sources:
                    _copy(origin / source.lstrip("/"), target, complete=origin != context)
            case ("RUN", text):
                _run_inside(root, place, text, image.environment)
            case ("ENV", text):
                image.environment |= assignments(_substitute(text, image.environment))
            case ("USER", text):
                image.user = text
            case ("ENTRYPOINT", text):
                image.entrypoint = json.loads(text)
            case ("LABEL" | "EXPOSE" | "ARG", _):
                pass
            case _:
                raise LabError(f"no such instruction here: {instruction.word}")
    return image


def _copy(source: Path, target: Path, *, complete: bool) -> None:
    """As COPY does: a directory's content into the target, a file into it."""
    if source.is_dir():
        ignore = None if complete else shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignore)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _path() -> str:
    return f"{Path(sys.base_prefix, 'bin')}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _run_inside(root: Path, place: Path, command: str, environment: Mapping[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    script = f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && "
    script += f"exec chroot {root} sh -c {shlex.quote(f'cd {place} && {command}')}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script],
        env={**kept, **environment, "HOME": "/root"},
        capture_output=True, text=True, timeout=BUILD_LIMIT, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise LabError(f"RUN {command}: {(done.stderr or done.stdout)[-2000:]}")


@contextlib.contextmanager
def _overlay(directory: Path) -> Iterator[Path]:
    """This machine's root with a file system in memory over it, at `directory`."""
    directory.mkdir()
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(directory))
    try:
        upper, work, root = (directory / name for name in ("upper", "work", "root"))
        for each in (upper, work, root):
            each.mkdir()
        options = f"lowerdir=/,upperdir={upper},workdir={work}"
        _mount("-t", "overlay", "-o", options, "overlay", str(root))
        try:
            # A Python in somebody's home, as pyenv installs it, is everybody's in an image.
            for each in Path(sys.base_prefix).relative_to("/").parents:
                (root / each).chmod(0o755)
            yield root
        finally:
            subprocess.run(["umount", "--lazy", str(root)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")
