"""Every latency source becomes the same series, in seconds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from alerts import slo, sources
from alerts.latency import LATENCY, P99, REQUESTS
from alerts.settings import Settings
from alerts.sources import EDGE, SOURCES, Source
from tests.rules import promtool
from tests.rules.promtool import close, growing, none_test, one, query_test
from vipscope import metrics as m
from vipscope.probe import prober

with_promtool = pytest.mark.skipif(bool(promtool.missing()), reason=promtool.missing())

RAW = {
    "probe": {"probe": "web", "path": "vip"},
    "istio": {
        "reporter": "source",
        "source_workload_namespace": "shop",
        "source_workload": "web",
        "destination_service_name": "cart",
        "destination_service_namespace": "store",
    },
    "linkerd": {
        "direction": "outbound",
        "namespace": "shop",
        "deployment": "web",
        "dst_service": "cart",
        "dst_namespace": "store",
    },
    "linkerd_route": {
        "namespace": "shop",
        "deployment": "web",
        "parent_name": "cart",
        "parent_namespace": "store",
    },
    "hubble": {
        "reporter": "client",
        "source_namespace": "shop",
        "source_workload": "web",
        "destination_workload": "cart",
        "destination_namespace": "store",
    },
    "otel_client": {
        "service_namespace": "shop",
        "service_name": "web",
        "server_address": "cart.store",
    },
    "otel_server": {"service_namespace": "store", "service_name": "cart"},
    "tempo": {"client": "web", "server": "cart"},
    "envoy": {"envoy_cluster_name": "cart"},
    "generic": {"service": "cart", "namespace": "store", "source": "a label of the application"},
}
"""Source -> labels of a histogram of it."""
EDGES = {
    "probe": ("n1", "web", ""),
    "otel_client": ("shop/web", "cart.store", ""),
    "otel_server": ("", "cart", "store"),
    "tempo": ("web", "cart", ""),
    "envoy": ("", "cart", ""),
    "generic": ("", "cart", "store"),
}
"""Source -> (source, destination, destination_namespace), of those that do not know all."""


def histogram(source: Source, counts: dict[float, float], **labels: str) -> dict[str, str]:
    """A histogram as the source has it, of two of its processes: bound in s -> requests a min."""
    name = f"{source.histogram}_bucket"
    scale = 1000 if source.unit == "ms" else 1
    bounds = [f"{bound * scale:.12g}" for bound in counts] + ["+Inf"]
    sums = list(itertools.accumulate(counts.values()))
    return {
        one(name, **{**RAW[source.name], **labels}, pod=pod, le=le): growing(total / 2)
        for pod in ("a", "b")
        for le, total in zip(bounds, [*sums, sums[-1]], strict=True)
    }


def edge(source: Source) -> dict[str, str]:
    caller, destination, namespace = EDGES.get(source.name, ("shop/web", "cart", "store"))
    labels = {
        "cluster": "c1",
        "node": "n1" if source.name == "probe" else "",
        "latency_source": source.name,
        "source": caller,
        "destination": destination,
        "destination_namespace": namespace,
    }
    assert tuple(labels) == EDGE
    return labels


def selector(metric: m.Metric, labels: dict[str, str]) -> str:
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{metric}{{{pairs}}}"


@with_promtool
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_it_is_normalised_to_seconds_and_the_labels_of_an_edge(
    source: Source, tmp_path: Path
) -> None:
    # 90 of 100 within 10 ms, the rest within 50 ms.
    given = histogram(source, {0.01: 90, 0.05: 10, 0.1: 0})
    of_it = edge(source)
    true = [
        close(selector(LATENCY["edge", 90], of_it), 0.01),
        close(selector(P99["edge"], of_it), 0.01 + 0.04 * 0.9),
        close(selector(REQUESTS["edge"], of_it), 100 / 60),
        close(selector(slo.TOTAL, of_it), 100 / 60),
        close(selector(slo.FAST, of_it), 100 / 60),
        close(P99["cluster"], 0.01 + 0.04 * 0.9),
        close(REQUESTS["cluster"], 100 / 60),
        f"count({sources.EDGE_BUCKETS}) == bool 4",
    ]
    tests = [query_test(source.name, given, 10, true)]
    if source.name != "probe":
        tests.append(none_test("its node is not the caller's", given, 10, [P99["node"]]))
    assert promtool.run(tmp_path, *tests) == ""


@with_promtool
@pytest.mark.parametrize(("name", "label", "other"), [
    ("istio", "reporter", "destination"),
    ("linkerd", "direction", "inbound"),
    ("hubble", "reporter", "server"),
    ("probe", "path", "direct"),
])  # fmt: skip
def test_the_other_report_of_the_same_requests_is_left_out(
    name: str, label: str, other: str, tmp_path: Path
) -> None:
    (source,) = (each for each in SOURCES if each.name == name)
    given = histogram(source, {0.05: 60}, **{label: other})
    assert promtool.run(tmp_path, none_test(name, given, 10, [sources.EDGE_BUCKETS])) == ""


@with_promtool
def test_a_failed_probe_took_for_ever(tmp_path: Path) -> None:
    probe = SOURCES[0]
    given = histogram(probe, {0.01: 57, 0.05: 0}) | {
        one(m.PROBE_FAILURES, probe="web", path="vip", reason="timeout"): growing(2),
        one(m.PROBE_FAILURES, probe="web", path="vip", reason="refused"): growing(1),
        one(m.PROBE_FAILURES, probe="web", path="direct", reason="refused"): growing(9),
    }
    true = [
        close(REQUESTS["edge"], 1),
        close(slo.ERROR_RATIO[300], 0.05),
        close(P99["edge"], 0.05),  # the largest bound there is
        close(P99["node"], 0.05),
    ]
    assert promtool.run(tmp_path, query_test("failures", given, 10, true)) == ""


@with_promtool
def test_a_histogram_without_requests_yields_no_percentile(tmp_path: Path) -> None:
    given = histogram(SOURCES[1], {0.01: 0, 0.05: 0})
    nothing = [*LATENCY.values(), slo.ERROR_RATIO[300], slo.ERROR_RATIO[3600], slo.BURN_RATE]
    assert promtool.run(tmp_path, none_test("quiet", given, 70, nothing)) == ""


@with_promtool
def test_bounds_are_read_as_prometheus_3_spells_them(tmp_path: Path) -> None:
    name, labels = "istio_request_duration_milliseconds_bucket", RAW["istio"]
    bounds = {"0.5": 0, "50.0": 30, "1000.0": 57, "1e+06": 60, "3.6e+06": 60, "+Inf": 60}
    given = {one(name, **labels, le=le): growing(count) for le, count in bounds.items()}
    probe = {
        one(f"{m.PROBE_DURATION}_bucket", probe="web", path="vip", le=le): growing(count)
        for le, count in {"0.05": 0, "1.0": 57, "+Inf": 60}.items()
    }
    slow = {
        settings: [close(f"{slo.ERROR_RATIO[300]}{{latency_source='{source}'}}", ratio)
                   for source, ratio in ratios.items()]
        for settings, ratios in (
            (Settings(), {"istio": 0.5, "probe": 1.0}),
            (Settings(threshold=1), {"istio": 0.05, "probe": 0.05}),
        )
    }  # fmt: skip
    for settings, true in slow.items():
        true.append(close(f'{P99["edge"]}{{latency_source="istio"}}', 1 + 999 * 0.8, 1e-6))
        test = query_test("3", given | probe, 10, true)
        assert promtool.run(tmp_path, test, settings=settings) == ""


@with_promtool
def test_sloth_finds_its_series_for_each_edge(tmp_path: Path) -> None:
    sloth = (
        'sloth_service="store/cart",sloth_slo="latency-istio-shop/web",'
        'sloth_id="store/cart-latency-istio-shop/web"'
    )
    true = [
        close(f"{metric}{{{sloth}}}", value)
        for metric, value in (
            (slo.OBJECTIVE, 0.99),
            (slo.BUDGET, 0.01),
            (slo.DAYS, 30),
            (slo.BURN_RATE, 10),
            (slo.PERIOD_BURN_RATE, 10),
            (slo.REMAINING, -9),
            (slo.INFO, 1),
            *((metric, 0.1) for metric in slo.ERROR_RATIO.values()),
        )
    ]
    given = histogram(SOURCES[1], {0.05: 90, 0.1: 10})
    assert promtool.run(tmp_path, query_test("sloth", given, 65, true)) == ""


@with_promtool
def test_a_window_is_weighted_by_traffic(tmp_path: Path) -> None:
    # A busy half hour without trouble, then a quiet hour in which all is slow.
    name, labels = f"{SOURCES[1].histogram}_bucket", RAW["istio"]
    given = {
        one(name, **labels, le="50"): "0+600x30 18000+0x60",
        one(name, **labels, le="+Inf"): "0+600x30 18060+60x60",
    }
    true = [
        close(slo.ERROR_RATIO[7200], 3600 / 21600, 0.01),
        close(slo.ERROR_RATIO[1800], 1.0),
    ]
    assert promtool.run(tmp_path, query_test("weighted", given, 90, true)) == ""


def test_a_threshold_that_a_source_is_known_not_to_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold 0\.03 s is no bucket bound of source istio"):
        sources.groups(Settings(threshold=0.03, sources=("tempo", "istio")))
    assert sources.groups(Settings(threshold=0.03, sources=("tempo", "linkerd")))
    for threshold in (0.05, 0.1, 1):
        sources.groups(Settings(threshold=threshold))


def test_the_probers_bounds_are_the_probers() -> None:
    assert sources.PROBE_BOUNDS == prober.BOUNDS


def test_only_the_chosen_sources_are_rendered() -> None:
    groups = sources.groups(Settings(sources=("istio", "probe")))
    assert [group.name for group in groups] == ["vipscope-source-istio", "vipscope-source-probe"]
    assert len(sources.groups(Settings())) == len(SOURCES) == len(RAW)
    with pytest.raises(ValueError, match="no such source: isto; there are probe, istio, "):
        sources.groups(Settings(sources=("isto",)))


@pytest.mark.parametrize("wrong", [{"objective": 1.0}, {"threshold": 0.0}, {"hasten": 0.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)
