"""The rendered files: as the code renders them, and with no name or label that there is not."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from alerts import render
from alerts.__main__ import COMMAND
from alerts.rule import NODE, Alert, Record
from alerts.settings import DAY, Settings, duration
from tests.rules import promtool
from tests.rules.names import NAME, metric_named, ours

HERE = COMMAND.here
SETTINGS = Settings()
FILES = render.files(SETTINGS)
RULES = [
    rule for group in itertools.chain(*render.groups(SETTINGS).values()) for rule in group.rules
]
RECORDED = render.recorded(SETTINGS)

GENERATED = ("le", *NODE)
"""Labels that a metric has without declaring them."""

each_rule = pytest.mark.parametrize(
    "rule", RULES, ids=lambda rule: str(rule.series) if isinstance(rule, Record) else rule.name
)
with_promtool = pytest.mark.skipif(bool(promtool.missing()), reason=promtool.missing())
with_amtool = pytest.mark.skipif(
    not shutil.which("amtool"), reason="the command amtool is not installed"
)


def test_the_committed_files_are_what_the_code_renders() -> None:
    committed = {
        str(path.relative_to(HERE)): path.read_text()
        for directory in ("rendered", "examples")
        for path in (HERE / directory).iterdir()
    }
    assert committed == FILES, "run `make generate`"


@with_promtool
@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("rendered/")])
def test_promtool_takes_them(path: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", HERE / path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@with_promtool
def test_promtool_takes_the_example_of_a_prometheus_configuration() -> None:
    example = HERE / "examples/prometheus.yaml"
    done = subprocess.run(
        ["promtool", "check", "config", example], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(render.groups(SETTINGS))} rule files found" in done.stdout


@each_rule
def test_every_series_is_of_the_catalogue_or_recorded(rule: Record | Alert) -> None:
    names = list(ours(rule.expr))
    assert [name for name in names if not metric_named(name)] == []


@each_rule
def test_every_matcher_names_a_label_of_its_series(rule: Record | Alert) -> None:
    for name, matchers in re.findall(rf"({NAME})\{{(.*?)\}}", rule.expr):
        metric = metric_named(name)
        if metric:
            assert set(re.findall(r"(\w+)=~?\"", matchers)) <= {*metric.labels, *GENERATED}, name


@each_rule
def test_every_grouping_names_labels_that_there_are(rule: Record | Alert) -> None:
    # Labels that the rule makes are those of its series.
    made = rule.series.labels if isinstance(rule, Record) else re.findall(r', "(\w+)"', rule.expr)
    there = {*GENERATED, *made}
    for name in ours(rule.expr):
        metric = metric_named(name)
        assert metric
        there |= set(metric.labels)
    for labels in re.findall(r"(?:by|on|ignoring|without) \((.*?)\)", rule.expr):
        assert set(labels.split(", ")) <= there


@each_rule
def test_every_aggregation_keeps_cluster(rule: Record | Alert) -> None:
    for labels in re.findall(r"(?:by|on) \((.*?)\)", rule.expr):
        assert "cluster" in labels.split(", ")


def test_names_are_level_metric_operations() -> None:
    for name in RECORDED:
        assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+|sloth_slo_info", name)


def test_no_series_is_recorded_twice() -> None:
    made = [(str(rule.series), *rule.labels.items()) for rule in RULES if isinstance(rule, Record)]
    assert len(made) == len(set(made))


def test_a_file_that_is_no_longer_made_is_removed(tmp_path: Path) -> None:
    (tmp_path / "rendered").mkdir()
    (tmp_path / "rendered/gone.yaml").touch()
    COMMAND.write(SETTINGS, tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")} == FILES.keys()


def test_every_setting_is_a_flag() -> None:
    settings, directory = COMMAND.parse(
        [
            "--sources",
            "istio,probe",
            "--objective",
            "0.999",
            "--many-rules",
            "7",
            "--directory",
            "x",
        ]
    )
    assert settings == Settings(sources=("istio", "probe"), objective=0.999, many_rules=7)
    assert directory == Path("x")
    assert COMMAND.parse([]) == (SETTINGS, HERE)


def test_what_is_wrong_with_the_settings_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["alerts", "--threshold=0.03"])
    with pytest.raises(
        SystemExit, match=r"^python -m alerts: threshold 0\.03 s is no bucket bound"
    ):
        COMMAND.main()


def test_every_window_and_waiting_time_is_hastened_and_nothing_else() -> None:
    slow = yaml.safe_load(FILES["rendered/causes.yaml"])
    fast = yaml.safe_load(render.files(Settings(hasten=60))["rendered/causes.yaml"])
    for before, after in zip(_alerts(slow), _alerts(fast), strict=True):
        assert before.get("for", "0m").replace("m", "s") == after.get("for", "0s")
        assert re.sub(r"\[(\d+)m\]", r"[\1s]", before["expr"]) == after["expr"]


def _alerts(content: dict[str, list[dict[str, list[dict[str, str]]]]]) -> list[dict[str, str]]:
    return [rule for group in content["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(300, "5m"), (3 * DAY, "3d"), (90, "90s"), (0.5, "500ms"), (2.5, "2500ms"), (1e-9, "1ms")],
)
def test_a_duration_is_spelled_as_prometheus_reads_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- Alertmanager ---------------------------------------------------------------------------------

EXAMPLE = HERE / "examples/alertmanager.yaml"


@with_amtool
def test_amtool_takes_the_example() -> None:
    done = subprocess.run(
        ["amtool", "check-config", EXAMPLE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@with_amtool
@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "pager"), ("warning", "tickets"), ("info", "nobody")]
)
def test_a_severity_goes_to_its_receiver(severity: str, receiver: str) -> None:
    done = subprocess.run(
        ["amtool", "config", "routes", "test", f"--config.file={EXAMPLE}",
         f"--verify.receivers={receiver}", f"severity={severity}", "cluster=c1", "node=n1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, receiver)


def test_every_inhibition_is_of_one_cluster_and_one_node_and_of_no_more_severe_alert() -> None:
    for rule in yaml.safe_load(EXAMPLE.read_text())["inhibit_rules"]:
        assert {"cluster", "node"} <= set(rule["equal"])
        (source,) = re.findall(r'severity = "(\w+)"', " ".join(rule["source_matchers"]))
        (targets,) = re.findall(r'severity =~? "([\w|]+)"', " ".join(rule["target_matchers"]))
        ranks = {"info": 0, "warning": 1, "critical": 2}
        assert all(ranks[target] <= ranks[source] for target in targets.split("|"))
