"""The chart's rules are those of `python -m alerts`, whatever values reach them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

import alerts.render
from alerts.settings import Settings
from tests.helm.chart import CHART, Object, Values, one, render
from tests.rules.promtool import missing
from tools import chart as generated

NAMES = {"sources": "sources", **generated.VALUES}
CASES = [
    Settings(),
    Settings(objective=0.999),
    Settings(objective=0.9995, threshold=1, minimum_requests=2),
    Settings(objective=0.5, threshold=2.5, sources=("istio", "otel_client")),
    Settings(threshold=0.123, sources=("tempo", "generic")),
    Settings(threshold=0.0005, sources=("istio",)),
    Settings(job="node-scope", runbooks="http://wiki/a_b#", dashboards="https://grafana:3000"),
]
ENABLED: Values = {"prometheusRule": {"enabled": True}, "ruleConfigMap": {"enabled": True}}


def values_of(settings: Settings) -> Values:
    """The chart's values for settings of the rules."""
    rules = {value: getattr(settings, field) for field, value in NAMES.items()}
    return {**ENABLED, "rules": {**rules, "sources": list(settings.sources)}}


def rules_of(settings: Settings) -> Mapping[str, list[Object]]:
    """File name -> groups, as `python -m alerts` renders them."""
    return {
        Path(path).name: alike(yaml.safe_load(text)["groups"])
        for path, text in alerts.render.files(settings).items()
        if path.startswith("rendered/")
    }


def alike(content: Any) -> Any:
    """Without what does not matter in an expression: how it is laid out, and spellings of a bucket
    bound that no bound has."""
    match content:
        case dict():
            return {key: alike(each) for key, each in content.items()}
        case list():
            return [alike(each) for each in content]
        case str():
            text = re.sub(r"\s+", " ", content).replace("( ", "(").replace(" )", ")")
            return re.sub(r"([0-9]\[\.\][0-9]+)\|\1\[\.\]0", r"\1", _without_more(text))
    return content


def _without_more(text: str) -> str:
    """`500e-3|500[.]0e-3` and `12.5e-3|12.5.0e-3`: a number with a point has no other spelling."""
    return re.sub(r"([0-9]+\[\.\][0-9]+)e-3\|\1\[\.\]0e-3", r"\1e-3", text)


@pytest.mark.parametrize("settings", CASES, ids=repr)
def test_a_value_is_in_the_rules_as_the_setting_would_be(settings: Settings) -> None:
    objects = render(values_of(settings))
    expected = rules_of(settings)
    files = one(objects, "ConfigMap", "vipscope-rules")["data"]
    assert {name: alike(yaml.safe_load(text)["groups"]) for name, text in files.items()} == expected
    groups = one(objects, "PrometheusRule")["spec"]["groups"]
    assert alike(groups) == [group for name in sorted(expected) for group in expected[name]]


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    objects = render(values_of(Settings(objective=0.999, threshold=0.1)))
    files = one(objects, "ConfigMap", "vipscope-rules")["data"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    command = ["promtool", "check", "rules", *map(str, tmp_path.glob("*.yaml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "settings", [{"threshold": 0.03}, {"threshold": 0.03, "sources": ["linkerd", "istio"]}]
)
def test_a_threshold_that_is_no_bucket_bound_is_refused_as_in_python(settings: Values) -> None:
    with pytest.raises(ValueError, match=r"threshold 0\.03") as refused:
        rules_of(Settings(**{**settings, "sources": tuple(settings.get("sources", ()))}))
    source = re.search(r"of source (\w+)", str(refused.value))
    bounds = str(refused.value).rpartition("it has ")[2]
    assert source
    with pytest.raises(helm_python.HelmRenderError) as error:
        render({**ENABLED, "rules": settings})
    message = str(error.value)
    assert f"rules.threshold: 0.03 s is no bucket bound {source[0]};" in message
    assert bounds in message


def test_an_odd_threshold_is_taken_where_the_bounds_are_the_operators() -> None:
    render({**ENABLED, "rules": {"threshold": 0.03, "sources": ["generic", "tempo"]}})


def test_defaults_are_those_of_the_rules() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["rules"]
    defaults = Settings()
    expected = {value: getattr(defaults, field) for field, value in NAMES.items()}
    assert values == {**expected, "sources": []}


def test_generated_files_are_what_make_generate_writes() -> None:
    for directory, files in (
        (generated.RULES, generated.rule_files()),
        (generated.DASHBOARDS, generated.dashboard_files()),
    ):
        there = {path.name: path.read_text() for path in directory.glob("*")}
        assert there == files, "run `make generate`"


def test_a_dashboard_fits_into_an_annotation_of_kubectl_apply() -> None:
    assert all(len(text) < 256 << 10 for text in generated.dashboard_files().values())


def test_braces_of_prometheus_reach_it() -> None:
    marks = generated.Marks()
    text = f'{{{{ $value }}}} > {marks.make(".Values.x")} and {{a="b"}}'
    assert marks.fill(text) == '{{ "{{" }} $value {{ "}}" }} > {{ .Values.x }} and {a="b"}'


def test_a_number_remembers_how_it_was_computed() -> None:
    marks = generated.Marks()
    number = generated.Number.make(0.99, marks, ".Values.x")
    assert number == 0.99
    assert marks.fill(f"{3 * round(1 - number, 12):g}") == "{{ mulf (subf 1 .Values.x) 3 }}"
    assert 3 * (1 - number) == pytest.approx(0.03)
