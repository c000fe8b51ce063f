"""The catalogue, and the samples that it lets pass."""

from __future__ import annotations

import pytest

from vipscope import metrics as m
from vipscope.metrics import CATALOGUE, Metric, Samples


def test_every_name_is_the_catalogues_own_and_spelled_once() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(names) == len(set(names))
    for metric in CATALOGUE:
        assert str(metric) == metric.name
        assert metric.name.startswith("vipscope_")


def test_no_label_is_one_that_the_scrape_adds() -> None:
    for metric in CATALOGUE:
        assert not {"node", "instance", "job"} & set(metric.labels)
        assert len(metric.labels) == len(set(metric.labels))


@pytest.mark.parametrize(
    ("name", "kind"), [("vipscope_x", "counter"), ("vipscope_x_total", "gauge")]
)
def test_counters_and_only_they_end_in_total(name: str, kind: m.Kind) -> None:
    with pytest.raises(ValueError, match="counters, and only they, end in _total"):
        Metric(name, kind, "x")


@pytest.mark.parametrize("metric", CATALOGUE, ids=str)
def test_a_sample_with_the_wrong_number_of_label_values_raises(metric: Metric) -> None:
    right = ["x"] * len(metric.labels)
    Samples(metric).add(*right, value=1)
    for wrong in ([*right, "x"], right[1:]):
        if len(wrong) != len(right):
            with pytest.raises(ValueError, match=metric.name):
                Samples(metric).add(*wrong, value=1)


def test_select_makes_a_selector_and_tilde_a_regular_expression() -> None:
    assert m.RULES.select(owner="kube-proxy") == 'vipscope_rules{owner="kube-proxy"}'
    assert m.RULES.select(table="~nat|filter") == 'vipscope_rules{table=~"nat|filter"}'
    assert m.SERIES.select() == "vipscope_series{}"


@pytest.mark.parametrize("label", ["Owner", "instance", "owner_", "node"])
def test_select_refuses_a_label_that_the_metric_does_not_declare(label: str) -> None:
    with pytest.raises(ValueError, match=f"vipscope_rules has no label '{label}'"):
        m.RULES.select(**{label: "x"})
