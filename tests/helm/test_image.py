"""What the Dockerfile says; what it makes is started in test_container.py."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helm.chart import one, pods, render
from tests.lab.image import Instruction, Stage, assignments, parse
from vipscope.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
ARGUMENTS, STAGES = parse(TEXT)
FINAL = STAGES[-1]
PINNED = re.compile(r"[a-z0-9./-]+:(\d+\.\d+)\.\d+-slim-bookworm")


def copies(stages: list[Stage] = STAGES) -> Iterator[Instruction]:
    for stage in stages:
        yield from (each for each in stage.instructions if each.word == "COPY")


def test_all_stages_have_one_pinned_base_which_a_release_replaces_by_its_digest() -> None:
    assert [each.base for each in STAGES] == [ARGUMENTS["BASE"]] * 2
    assert re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE) == ["${BASE}"] * 2
    pinned = PINNED.fullmatch(ARGUMENTS["BASE"])
    assert pinned
    assert "latest" not in TEXT
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == f">={pinned[1]}"


def test_nothing_is_of_one_architecture() -> None:
    assert not re.search(r"(?i)amd64|x86|arm64|aarch64|targetarch|--platform", TEXT)


def test_what_is_installed_is_pinned_by_hash() -> None:
    runs = " && ".join(text for stage in STAGES for text in stage.all("RUN")).split("&&")
    installs = [each for each in runs if " install " in each]
    assert len(installs) == 3
    for each in installs:
        assert "--require-hashes" in each or {"--no-deps", "--no-index"} <= {*each.split()}
    assert not [each for each in runs if re.search(r"\b(apt|apt-get|curl|wget)\b", each)]


def test_the_image_is_made_of_what_was_built_and_runs_as_nobody() -> None:
    assert not FINAL.all("RUN")
    assert {each.source for each in copies([FINAL])} == {"build"}
    assert FINAL.all("USER") == ["65532:65532"]
    (entrypoint,) = (json.loads(each) for each in FINAL.all("ENTRYPOINT"))
    assert entrypoint == ["/opt/vipscope/bin/vipscope"]


def test_user_and_port_are_the_charts_too() -> None:
    user, group = FINAL.all("USER")[0].split(":")
    for part, spec in pods(render()):
        context = spec["containers"][0]["securityContext"]
        if part != "node":
            assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    (port,) = one(render(), "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert FINAL.all("EXPOSE") == [str(port["containerPort"])]
    assert port["containerPort"] == Settings().listen_addresses[0].port


def test_labels_are_those_of_the_open_container_initiative() -> None:
    (labels,) = map(assignments, FINAL.all("LABEL"))
    wanted = ("title", "description", "source", "documentation", "licenses", "version", "revision")
    assert labels.keys() == {f"org.opencontainers.image.{each}" for each in wanted}
    assert all(labels.values())


def test_what_is_copied_is_there_and_no_more_is_sent_to_the_engine() -> None:
    first, *rest = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    sent = {line[1:] for line in rest if line.startswith("!")}
    copied = {path for each in copies() if not each.source for path in each.paths[:-1]}
    assert first == "*"
    assert sent == {path.partition("/")[0] for path in copied}
    assert all((ROOT / path).exists() for path in copied)
    excluded = [line.removeprefix("**/") for line in rest if not line.startswith("!")]
    assert any(fnmatch.fnmatch("__pycache__", each) for each in excluded)


@pytest.mark.parametrize(
    ("text", "word", "rest"),
    [
        ("FROM a\nRUN b \\\n && c", "RUN", "b && c"),
        ("FROM a\nRUN b \\\n# comment\n  c", "RUN", "b c"),
        ("FROM a\nCOPY --from=x /y /z", "COPY", "--from=x /y /z"),
    ],
)
def test_the_laboratory_reads_dockerfiles(text: str, word: str, rest: str) -> None:
    _, (stage,) = parse(text)
    assert stage.instructions == [Instruction(word, rest)]
