"""docs/contributing-by-example.md can be followed from top to end: in a copy of the tree it is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.dashboards import store
from tests.lab import uml
from tests.lab.namespace import requirements
from tests.rules import promtool

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/contributing-by-example.md"
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CONCERNED = (
    "tests/test_cli.py -k every_collector",
    "tests/test_settings.py tests/test_metrics.py tests/test_generate.py",
    "tests/diagnosis/test_findings.py",
    "tests/test_documents.py -k 'tables or series'",
    "tests/test_exposition.py -k every_metric",
)
"""Of all tests, which `make test` runs, those that see a new collector and no step asks for."""
LINT = ("ruff check", "ruff format --check", "lint-imports --no-cache", "mypy {changed}")
"""What `make lint` runs, but for the types of what the page does not touch."""

LACKING = [
    *requirements(),
    *filter(None, [uml.available(), promtool.missing()]),
    *(f"{each} is not installed" for each in ("ruff", "mypy") if not shutil.which(each)),
]
followed = pytest.mark.skipif(bool(LACKING), reason="; ".join(LACKING))


class Block(NamedTuple):
    """A fenced block of the page."""

    kind: str
    """`diff` of one or more files, `python` for a whole file, `console`."""
    path: str
    """Of a whole file."""
    text: str


BLOCKS = [Block(*found) for found in BLOCK.findall(PAGE.read_text())]


def copied(directory: Path) -> Path:
    """A copy of the tree, without what was made in it."""
    made = shutil.ignore_patterns(
        ".git", ".venv*", ".*_cache", ".coverage*", ".hypothesis", "__pycache__"
    )
    return Path(shutil.copytree(ROOT, directory / "tree", ignore=made))


def change(tree: Path, diff: str) -> list[str]:
    """Make the changes of a diff, and return its paths.

    Each hunk has to be found by its lines alone, at one place: there are no line numbers to go by.
    """
    paths = []
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        path, *hunks = re.split(r"\n@@$", part.rstrip("\n"), flags=re.MULTILINE)
        text = "\n" + (tree / path).read_text()
        for hunk in hunks:
            lines = hunk.split("\n")[1:]
            old = "".join(f"\n{line[1:]}" for line in lines if line[:1] in " -") + "\n"
            new = "".join(f"\n{line[1:]}" for line in lines if line[:1] in " +") + "\n"
            assert text.count(old) == 1, f"{path} has {text.count(old)} times:{old}"
            text = text.replace(old, new)
        (tree / path).write_text(text[1:])
        paths.append(path)
    return paths


def make(tree: Path, block: Block) -> list[str]:
    """Make a block's changes, and return the paths that it touches."""
    if block.kind == "diff":
        return change(tree, block.text)
    if block.kind == "python":
        assert not (tree / block.path).exists()
        (tree / block.path).write_text(block.text)
        return [block.path]
    return []


def run(tree: Path, *argv: str, **more: str) -> str:
    """What a command in the tree prints. It imports the tree's packages, and is not measured."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COV", "PYTEST", "PYTHON"))
    }
    done = subprocess.run(
        argv,
        cwd=tree,
        env={**inherited, **more, "PYTHONPATH": f"{tree / 'exporter'}:{tree}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(argv)}\n{done.stdout}"
    return done.stdout


def execute(tree: Path, command: str, changed: list[str]) -> str:
    """What a command of the page prints. make itself would first set up what is there already."""
    words = shlex.split(command)
    assigned = [word.split("=") for word in words if re.match(r"[A-Z_]+=1$", word)]
    match words[len(assigned) :]:
        case ["make", "generate"]:
            commands = ["python -m tools.generate"]
        case ["make", "lint"]:
            python = shlex.join(path for path in changed if path.endswith(".py"))
            commands = [each.format(changed=python) for each in LINT]
        case ["make", "test", *named]:
            arguments = [each.removeprefix("ARGS=") for each in named] or CONCERNED
            commands = [f"python -m pytest -q {each}" for each in arguments]
        case _:
            commands = [command]
    printed = ""
    for each in commands:
        program, *arguments = shlex.split(each)
        program = sys.executable if program == "python" else program
        printed += run(tree, program, *arguments, **dict(assigned))
    return printed


@followed
@pytest.mark.timeout(300)
def test_every_change_can_be_made_and_every_command_run(tmp_path: Path) -> None:
    tree = copied(tmp_path)
    changed: list[str] = []
    for block in BLOCKS:
        changed += make(tree, block)
        if block.kind == "console":
            for command, said in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block.text, re.MULTILINE):
                printed = execute(tree, command, changed)
                assert printed == said or not said
    page = (tree / "exporter/METRICS.md").read_text()
    assert page.count("| `vipscope_neighbour") == 3
    assert (
        "VipscopeNeighboursRefused" in (tree / "helm/vipscope/files/rules/causes.yaml").read_text()
    )


SHOW = """
from pathlib import Path
from alerts import links
from tests.dashboards import history, store
from tests.dashboards.asking import STEP, filled_in
from tests.dashboards.rendered import asked

queries = [each for each in asked(links.NODE) if each.panel.startswith("Neighbours")]
directory = Path("history")
directory.mkdir()
store.scrape(directory, 1, {name for each in queries for name in store.NAME.findall(each.expr)})
with store.Store(directory) as prometheus:
    for query in queries:
        expr = filled_in(query.expr, query.board, history.name(0))
        for labels, values in prometheus.course(expr, STEP):
            name, *_ = store.NAME.findall(query.expr.removeprefix("rate("))
            print(name, labels["family"], len(values) > 50)
"""
"""Asks Prometheus for what the panel shows, of one node and without what rules record."""


@followed
@pytest.mark.skipif(bool(store.LACKING), reason=store.LACKING)
def test_the_panel_has_something_to_show(tmp_path: Path) -> None:
    tree = copied(tmp_path)
    for block in BLOCKS:
        make(tree, block)
    assert run(tree, sys.executable, "-c", SHOW).splitlines() == [
        "vipscope_neighbour_entries ipv4 True",
        "vipscope_neighbour_entries_limit ipv4 True",
        "vipscope_neighbours_refused_total ipv4 True",
    ]


# --- following ------------------------------------------------------------------------------------

DIFF = """\
--- file
@@
 b
-c
+C
@@
+d
 e
"""


def test_a_change_is_found_by_its_lines_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("new\na b\nb\nc\nx\ne\nee\n")
    assert change(tmp_path, DIFF) == ["file"]
    assert (tmp_path / "file").read_text() == "new\na b\nb\nC\nx\nd\ne\nee\n"


@pytest.mark.parametrize("text", ["b\nx\nc\ne\n", "b\nc\ne\nb\nc\n", "b\nc\n e\n"])
def test_a_change_whose_lines_are_gone_or_at_two_places_cannot_be_made(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(AssertionError, match=r"^file has [02] times"):
        change(tmp_path, DIFF)


def test_every_block_is_one_that_is_followed() -> None:
    assert {block.kind for block in BLOCKS} == {"diff", "python", "console"}
    assert PAGE.read_text().count("```") == 2 * len(BLOCKS)
    assert all(bool(block.path) == (block.kind == "python") for block in BLOCKS)
