"""What the Markdown pages say is there: links, names, flags, targets, and the commands they give.

Tests have no network: of a link to elsewhere only the form is looked at.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import pytest
import yaml
from helm_python import Chart

from alerts.__main__ import COMMAND as ALERTS
from alerts.render import groups
from alerts.rule import NODE, Alert
from alerts.settings import Settings as RuleSettings
from dashboards.__main__ import COMMAND as DASHBOARDS
from dashboards.boards import ALL as BOARDS
from demo.play import DOORS
from tests.helm.chart import Object, one
from tests.lab.namespace import Namespace, requirements
from tests.rules.names import NAME, metric_named, ours
from tests.test_cli import ENVIRONMENT
from tools.chart import CHART, values
from vipscope import settings

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
}
EXAMPLE = "docs/contributing-by-example.md"
"""Whose names there are when it has been followed: tests/test_contributing.py does, and runs its
commands."""
TOLD = {
    name: text
    for name, text in PAGES.items()
    if name.split("/")[0] in ("README.md", "docs", "helm") and name != EXAMPLE
}
"""The pages whose commands are run here."""
PATIENCE = 60.0
"""Seconds until `make run` serves: before it, pip looks whether all is installed."""

every_page = pytest.mark.parametrize("page", PAGES)
every_but_the_example = pytest.mark.parametrize("page", sorted(PAGES.keys() - {EXAMPLE}))


def code(text: str) -> str:
    """All code of a page: spans and blocks."""
    return "\n".join(re.findall(r"^```.*?^```|`[^`\n]+`|^    .*$", text, re.DOTALL | re.MULTILINE))


# --- links ----------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The headings of a page as a forge makes anchors of them."""
    seen = Counter[str]()
    found = set()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def wrong_links(page: str, text: str) -> Iterator[str]:
    prose = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not leads_somewhere(page, urlsplit(target)):
            yield target


def leads_somewhere(page: str, target: SplitResult) -> bool:
    if target.scheme or target.netloc:
        return target.scheme == "https" and "." in target.netloc
    path = (ROOT / Path(page).parent / target.path if target.path else ROOT / page).resolve()
    if not path.is_relative_to(ROOT) or not path.exists():
        return False
    return not target.fragment or target.fragment in anchors(path.read_text())


@every_page
def test_every_link_leads_somewhere(page: str) -> None:
    assert list(wrong_links(page, PAGES[page])) == []


@pytest.mark.parametrize(
    "target",
    ["nowhere.md", "#nothing", "docs/flags.md#nothing", "../README.md", "http://example.com"],
)
def test_a_link_that_leads_nowhere_is_found(target: str) -> None:
    assert list(
        wrong_links(
            "README.md", f"[x]({target}) [y](#quick-start) [z](docs/tls.md) [w](https://a.b)"
        )
    ) == [target]


# --- names ----------------------------------------------------------------------------------------


@every_but_the_example
def test_every_series_is_of_the_catalogue_or_recorded_with_its_labels(page: str) -> None:
    text = PAGES[page]
    assert {name for name in ours(text) if not metric_named(name)} == set()
    for name, matchers in re.findall(rf"({NAME})\{{(.*?)\}}", text):
        metric = metric_named(name)
        if metric:
            assert set(re.findall(r"(\w+)=", matchers)) <= {*metric.labels, *NODE}, name


@every_but_the_example
def test_every_alert_that_is_named_there_is(page: str) -> None:
    rules = chain.from_iterable(
        group.rules for found in groups(RuleSettings()).values() for group in found
    )
    there = {rule.name for rule in rules if isinstance(rule, Alert)}
    assert set(re.findall(r"\bVipscope[A-Z]\w+", PAGES[page])) <= there


def flags_of(*lines: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*(?:\.[a-z][\w-]*)*", "\n".join(lines)))


OURS = flags_of(
    *(option for one in (settings.parser(), settings.doctor_parser(), settings.trace_parser())
      for action in one._actions for option in action.option_strings),
    *(f"--{name.replace('_', '-')}" for name in RuleSettings.__dataclass_fields__),
    "--directory",
)  # fmt: skip
FOREIGN = {
    "docker buildx": ("--build-arg", "--platform", "--push", "--tag"),
    "helm": ("--create-namespace", "--namespace", "--set", "--set-string"),
    "iptables": ("--random-fully",),
    "kube-proxy": ("--cleanup",),
    "kubectl": ("--field-selector", "--namespace", "--output", "--selector", "--sort-by"),
    "tests.bench": ("--write",),
}
"""Flags of others that pages mention."""
GENERIC = {"--collector"}
"""What is left of `--collector.NAME` and `--[no-]collector.NAME`."""


@every_but_the_example
def test_every_flag_is_one_that_somebody_takes(page: str) -> None:
    assert flags_of(code(PAGES[page])) <= OURS | set(chain(*FOREIGN.values())) | GENERIC


@every_page
def test_every_target_of_make_is_in_the_makefile(page: str) -> None:
    there = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`|\$ )make ([a-z]+)\b", code(PAGES[page]), re.MULTILINE)
    assert set(named) <= there


def first_cells(page: str, head: str) -> list[str]:
    """The first column of the table that begins with `head`."""
    _, _, rest = PAGES[page].partition(f"{head}\n|---")
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    return [row.split("|")[1].strip() for row in rows]


def test_tables_by_hand_name_what_there_is() -> None:
    assert first_cells("README.md", "| collector | needs | without it |") == list(
        settings.COLLECTORS
    )
    titles = {make(RuleSettings()).title for make in BOARDS}
    assert set(first_cells("docs/rules-and-dashboards.md", "| dashboard | is for |")) == titles
    assert all(title in PAGES["README.md"] for title in titles)
    chart = {each.path for each in values((CHART / "values.yaml").read_text())}
    named = re.findall(r"`([^`]+)`", " ".join(first_cells("docs/helm.md", "| value | does |")))
    assert named
    assert set(named) <= chart


# --- commands -------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """What a page tells to type: lines of its blocks in sh, and those after `$ ` in others."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines = block.replace("\\\n", " ").splitlines()
        for line in lines:
            if language == "sh" or line.startswith("$ "):
                yield " ".join(line.removeprefix("$ ").split())


Check = Callable[[str, Path], None]


class RunBy(NamedTuple):
    """A test that does what the command does."""

    test: str
    by: str = ""
    """What of the test's file does so; "" when it takes the command from here."""


class NotRun(NamedTuple):
    """Why a command is not run."""

    reason: str


def renders(line: str, tmp_path: Path) -> None:
    """`python -m alerts` or `dashboards`, into another directory."""
    _, *arguments = shlex.split(line)
    arguments = [
        f"--directory={tmp_path}" if each.startswith("--directory=") else each for each in arguments
    ]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=ENVIRONMENT, check=True)
    command = {each.name: each for each in (ALERTS, DASHBOARDS)}[arguments[1]]
    for path, text in command.files(command.parse(arguments[2:])[0]).items():
        assert (tmp_path / path).read_text() == text


def is_understood(line: str, _: Path) -> None:
    """A command line that would serve until it is stopped."""
    name, *arguments = shlex.split(line)
    assert name == "vipscope"
    assert settings.load(arguments, {}) != settings.load([], {})


def leads_to_what_the_demonstration_opens(line: str, _path: Path) -> None:
    """`ssh`, to a machine that is none of ours."""
    ssh, *ways, _server = shlex.split(line)
    assert ssh == "ssh"
    assert ways == list(chain(*(("-L", f"{port}:127.0.0.1:{port}") for port in DOORS)))


INSTALL = (
    "helm install vipscope helm/vipscope --namespace vipscope "
    "--set image.registry=registry.example.com"
)


@functools.cache
def installed() -> tuple[str, list[Object]]:
    """The namespace, and what `helm install` makes there, as far as Helm goes without a cluster."""
    helm, install, release, chart, *options = shlex.split(INSTALL)
    assert (helm, install) == ("helm", "install")
    given = dict(zip(options[::2], options[1::2], strict=True))
    registry = given["--set"].removeprefix("image.registry=")
    rendered = Chart.load(ROOT / chart).render(
        {"image": {"registry": registry}}, name=release, namespace=given["--namespace"]
    )
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return given["--namespace"], [each for text in texts for each in yaml.safe_load_all(text)]


def installs(_line: str, _path: Path) -> None:
    _, objects = installed()
    (container,) = one(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.example.com/vipscope/vipscope:")


def names_what_is_installed(line: str, _path: Path) -> None:
    """`kubectl`, as far as it can be tried without a cluster."""
    words = shlex.split(re.sub(r"^POD=\$\((.*)\)$", r"\1", line))
    assert words[0] == "kubectl"
    namespace, objects = installed()
    template = one(objects, "DaemonSet")["spec"]["template"]
    assert words[words.index("--namespace" if "--namespace" in words else "namespace") + 1] == (
        namespace
    )
    if words[1] == "label":  # without which the host's network is refused
        assert template["spec"]["hostNetwork"]
        assert words[-1] == "pod-security.kubernetes.io/enforce=privileged"
    if "--selector" in words:
        label, _, value = words[words.index("--selector") + 1].partition("=")
        found = [each for each in objects if (labels_of_pods(each)).get(label) == value]
        assert found == [one(objects, "DaemonSet")]
    if "exec" in words:
        pod, _, *command = words[words.index("exec") + 1 :]
        assert pod in ("$POD", f"daemonset/{one(objects, 'DaemonSet')['metadata']['name']}")
        assert " ".join(command) in COMMANDS


def labels_of_pods(found: Object) -> Mapping[str, str]:
    """Of those that the object makes, if any."""
    template = found.get("spec", {}).get("template", {})
    labels: Mapping[str, str] = template.get("metadata", {}).get("labels", {})
    return labels


ON_A_NODE = RunBy("tests/test_documents.py::test_what_is_said_of_one_node_works_as_it_is_typed")
ASKED = RunBy(
    "tests/helm/test_container.py::test_as_the_daemon_set_starts_it_all_of_the_node_is_exported",
    '"files" / "ask.py"',
)
BUILT = RunBy(
    "tests/helm/test_container.py::test_the_image_holds_what_is_pinned_and_vipscope",
    "build(DOCKERFILE, ",
)  # by the steps of the Dockerfile: there is no engine here

COMMANDS: Mapping[str, Check | RunBy | NotRun] = {
    "make demo": NotRun("it takes seven minutes: its short form is run"),
    "make demo DEMO=short": RunBy(
        "tests/test_demo.py::"
        "test_each_incident_of_the_short_demonstration_fires_its_alert_that_ceases",
        '"make", "demo", "DEMO=short"',
    ),
    "ssh -L 9908:127.0.0.1:9908 -L 9909:127.0.0.1:9909 -L 9090:127.0.0.1:9090 "
    "-L 9093:127.0.0.1:9093 root@SERVER": leads_to_what_the_demonstration_opens,
    "make run": ON_A_NODE,
    "curl -s http://localhost:9908/metrics": ON_A_NODE,
    "make run ARGS=doctor": ON_A_NODE,
    "kubectl create namespace vipscope": names_what_is_installed,
    "kubectl label namespace vipscope pod-security.kubernetes.io/enforce=privileged": (
        names_what_is_installed
    ),
    INSTALL: installs,
    "helm test vipscope --namespace vipscope": ASKED,
    "kubectl --namespace vipscope exec daemonset/vipscope-node -- vipscope doctor": (
        names_what_is_installed
    ),
    "POD=$(kubectl --namespace vipscope get pod --output name "
    "--selector app.kubernetes.io/component=node --field-selector spec.nodeName=NODE)": (
        names_what_is_installed
    ),
    "kubectl --namespace vipscope exec $POD -- vipscope doctor": names_what_is_installed,
    "docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=0.1.0 "
    "--build-arg BASE=python:3.11.14-slim-bookworm@sha256:... "
    "--tag registry.example.com/vipscope/vipscope:0.1.0 --push .": BUILT,
    "vipscope doctor": RunBy(
        "tests/test_doctor.py"
        "::test_in_mode_iptables_it_names_each_faulty_service_and_what_is_broken_besides",
        '"-m", "vipscope", "doctor"',
    ),
    "vipscope trace ns-0/svc-0": RunBy(
        "tests/test_trace_command.py::test_the_report_for_people_is_the_golden_one",
        'here.trace("--cluster-dns=", "ns-0/svc-0")',
    ),
    "vipscope --probe.target=web=http://10.96.0.20:80/healthz,direct=10.0.1.7:8080,10.0.2.9:8080": (
        is_understood
    ),
    ".venv/bin/python -m alerts --objective=0.995 --threshold=0.1 --sources=probe,istio "
    "--directory=/etc/prometheus/vipscope": renders,
    ".venv/bin/python -m dashboards --datasource=mimir --threshold=0.1 "
    "--directory=/etc/grafana/vipscope": renders,
}
"""How each command of `TOLD` is tried."""


def test_every_command_is_tried_in_some_way_and_no_other() -> None:
    assert {line for text in TOLD.values() for line in commands(text)} == COMMANDS.keys()


def test_commands_are_found_in_whatever_block_they_are() -> None:
    text = "```sh\na \\\n  b\n```\n```\n$ c d\nits output\n```\n```yaml\ne: f\n```\n"
    assert list(commands(text)) == ["a b", "c d"]


@pytest.mark.parametrize(
    "run", sorted({each for each in COMMANDS.values() if isinstance(each, RunBy)})
)
def test_a_test_that_runs_a_command_there_is_and_does(run: RunBy) -> None:
    path, _, name = run.test.partition("::")
    text = (ROOT / path).read_text()
    assert f"\ndef {name}(" in text
    assert run.by in text


@pytest.mark.parametrize(
    ("line", "check"),
    [(line, how) for line, how in COMMANDS.items() if callable(how)],
)
def test_a_command_does_what_is_said(line: str, check: Check, tmp_path: Path) -> None:
    check(line, tmp_path)


@pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
@pytest.mark.skipif(not shutil.which("curl"), reason="the command curl is not installed")
def test_what_is_said_of_one_node_works_as_it_is_typed() -> None:
    run, fetch, doctor = (line for line, how in COMMANDS.items() if how is ON_A_NODE)
    options: dict[str, Any] = {
        "cwd": ROOT,
        # Without what the make that runs this hands on.
        "env": {
            name: text
            for name, text in ENVIRONMENT.items()
            if name not in ("ARGS", "MFLAGS") and not name.startswith("MAKE")
        },
        "text": True,
    }
    with Namespace() as node:
        node.restore((ROOT / "tests/captures/iptables/small.v4.save").read_text())
        server = node.popen("sh", "-c", run, start_new_session=True, **options)
        try:
            shown = ""
            deadline = time.monotonic() + PATIENCE
            while "vipscope_rules{" not in shown and time.monotonic() < deadline:
                time.sleep(0.5)
                shown, _ = node.popen(
                    "sh", "-c", fetch, stdout=subprocess.PIPE, **options
                ).communicate(timeout=PATIENCE)
            said = node.popen("sh", "-c", doctor, stdout=subprocess.PIPE, **options)
            report, _ = said.communicate(timeout=PATIENCE)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=PATIENCE)
    assert 'vipscope_proxy_mode{mode="iptables"} 1.0' in shown
    assert "kube-proxy does not answer on this node [kube-proxy-down]" in report
    assert said.returncode != 0
