"""The catalogue, and the samples that it lets pass."""

from __future__ import annotations

import pytest

from vipscope import metrics as m
from vipscope.metrics import CATALOGUE, Metric, Samples
from vipscope.snapshot import Histogram


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
    def add(labels: list[str]) -> None:
        if metric.kind == "histogram":
            Samples(metric).add_histogram(*labels, value=Histogram((1.0,), (2, 3), 4.0))
        else:
            Samples(metric).add(*labels, value=1)

    right = ["x"] * len(metric.labels)
    add(right)
    for wrong in ([*right, "x"], right[1:]):
        if len(wrong) != len(right):
            with pytest.raises(ValueError, match=metric.name):
                add(wrong)


def test_a_histograms_buckets_add_up() -> None:
    metric = Metric("vipscope_x", "histogram", "x", ("a",))
    added = Samples(metric).add_histogram("b", value=Histogram((0.5, 10.0), (2, 0, 3), 99.5))
    samples = {(each.name, each.labels.get("le")): each.value for each in added.family.samples}
    assert samples == {
        ("vipscope_x_bucket", "0.5"): 2,
        ("vipscope_x_bucket", "10"): 2,
        ("vipscope_x_bucket", "+Inf"): 5,
        ("vipscope_x_count", None): 5,
        ("vipscope_x_sum", None): 99.5,
    }
    assert {each.labels["a"] for each in added.family.samples} == {"b"}


def test_a_histogram_has_one_bucket_more_than_bounds() -> None:
    with pytest.raises(ValueError, match="zip"):
        Samples(Metric("vipscope_x", "histogram", "x")).add_histogram(
            value=Histogram((1.0,), (2,), 4.0)
        )


def test_select_makes_a_selector_and_tilde_a_regular_expression() -> None:
    assert m.RULES.select(owner="kube-proxy") == 'vipscope_rules{owner="kube-proxy"}'
    assert m.RULES.select(table="~nat|filter") == 'vipscope_rules{table=~"nat|filter"}'
    assert m.SERIES.select() == "vipscope_series{}"


@pytest.mark.parametrize("label", ["Owner", "instance", "owner_", "node"])
def test_select_refuses_a_label_that_the_metric_does_not_declare(label: str) -> None:
    with pytest.raises(ValueError, match=f"vipscope_rules has no label '{label}'"):
        m.RULES.select(**{label: "x"})
