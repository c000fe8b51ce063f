"""Several clusters on several Prometheus, as the examples say, and on one: the same is recorded."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alerts import prometheus, render, scale
from alerts.rule import Alert, Record
from alerts.settings import Settings
from tests.dashboards.rendered import asked
from tests.lab.fleet import fleet, samples, targets
from tests.lab.prometheus import Prometheus, free_address, missing
from tests.lab.waiting import wait
from tests.rules.names import NAME, metric_named, ours
from vipscope.metrics import CATALOGUE

SETTINGS = Settings(hasten=20, scrape_interval=20)
"""A scrape a second, and 15 of them in the shortest window: a late one changes nothing."""
RULES = [
    rule for groups in render.groups(SETTINGS).values() for group in groups for rule in group.rules
]
RECORDED = render.recorded(SETTINGS)
NODES = {f"node-{number}": f"c{number % 5}" for number in range(15)}
"""Node -> cluster. Its hash gives either shard some."""
SHARDS = 2
GOLDEN = Path(__file__).parents[1] / "golden"
PATIENCE = 240.0
"""Seconds, for six Prometheus that evaluate all rules each second on a machine that is busy."""

pytestmark = pytest.mark.timeout(3 * PATIENCE)
with_prometheus = pytest.mark.skipif(bool(missing("prometheus")), reason=missing("prometheus"))
with_victoria_metrics = pytest.mark.skipif(
    not shutil.which("victoria-metrics"), reason="victoria-metrics is not installed"
)

Series = frozenset[tuple[str, str]]
"""A series by its labels, the name among them."""


# --- on paper -------------------------------------------------------------------------------------


def taken(series: Mapping[str, str]) -> bool:
    """Whether RECORDED takes a series, which both Prometheus and Go's RE2 match in full."""
    return any(
        all(re.fullmatch(regex, series.get(label, "")) for label, regex in each.items())
        for each in scale.RECORDED
    )


def test_whatever_the_rules_record_is_sent_on() -> None:
    for name, series in RECORDED.items():
        assert taken({"__name__": name, **dict.fromkeys(series.labels, "x")}), name


def test_every_alert_is_sent_on() -> None:
    for rule in RULES:
        if isinstance(rule, Alert):
            assert taken({"__name__": "ALERTS", "alertname": rule.name}), rule.name


@pytest.mark.parametrize("suffix", ["", "_bucket", "_sum", "_count"])
def test_nothing_that_an_exporter_says_is_sent_on(suffix: str) -> None:
    for metric in CATALOGUE:
        assert not taken({"__name__": f"{metric}{suffix}"})


@pytest.mark.parametrize(
    "series",
    [
        {"__name__": "up", "job": "vipscope"},
        {"__name__": "slo:sli_error:ratio_rate5m", "sloth_id": "sloth's own"},
        {"__name__": "ALERTS", "alertname": "Watchdog"},
        {"__name__": "ALERTS_FOR_STATE", "alertname": "VipscopeExporterDown"},
        {"__name__": "instance:node_cpu:ratio"},
    ],
)
def test_nothing_of_others_is_sent_on(series: Mapping[str, str]) -> None:
    assert not taken(series)


def test_no_rule_needs_more_than_one_cluster() -> None:
    # So a shard that takes whole clusters has all that its rules need.
    for rule in RULES:
        for labels in re.findall(r"(?:by|on) \((.*?)\)", rule.expr):
            assert "cluster" in labels.split(", ")
        assert not re.search(r"(ignoring|without) \([^)]*cluster", rule.expr)


def test_a_split_within_a_cluster_would_part_what_is_recorded_of_the_cluster() -> None:
    # The reason to keep clusters whole: these are aggregated over nodes, and the others are not.
    for rule in RULES:
        if isinstance(rule, Record):
            level = str(rule.series).partition(":")[0]
            keeps_nodes = "node" in rule.series.labels
            assert keeps_nodes == (level.split("_")[0] not in ("cluster", "service")), rule.series


def test_the_dashboard_of_the_fleet_needs_little_else() -> None:
    queries = [query.expr for query in asked("vipscope-fleet")]
    served = [expr for expr in queries if all(name in RECORDED for name in ours(expr))]
    assert len(served) >= len(queries) - 2


def test_lean_keeps_each_series_that_a_rule_reads() -> None:
    kept = render.read(Settings())
    for rule in RULES:
        for name in re.findall(NAME, rule.expr):
            if metric_named(name) and name not in RECORDED:
                assert name in kept
    assert all(metric_named(name) for name in kept)


# --- for real -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What runs side by side. All but `receiver` and `federation` evaluate the rules."""

    one: Prometheus
    """Scrapes all nodes, and sends what it records to VictoriaMetrics."""
    lean: Prometheus
    """Scrapes all nodes, and keeps what rules read."""
    shards: Sequence[Prometheus]
    federation: Prometheus
    receiver: Prometheus
    """Gets by remote write what the shards record."""
    victoria_metrics: str
    """Its URL; nobody there where it is not installed."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with contextlib.ExitStack() as stack:

        def run(name: str, config: Mapping[str, Any], *flags: str) -> Prometheus:
            directory = with_rules(tmp_path_factory.mktemp(name))
            return stack.enter_context(Prometheus(directory, config, *flags))

        address = stack.enter_context(fleet(*node(), seconds=1))
        receiver = run("receiver", {}, "--web.enable-remote-write-receiver")
        url = f"{receiver.url}/api/v1/write"
        whole = scrape(address)
        shards = [
            run(f"shard-{shard}", scale.remote_write(scale.sharded(whole, shard, SHARDS), url))
            for shard in range(SHARDS)
        ]
        federation = scale.federation(SETTINGS, [shard.address for shard in shards])
        victoria = f"http://{free_address()}"
        if shutil.which("victoria-metrics"):
            stack.enter_context(victoria_metrics(victoria, tmp_path_factory.mktemp("victoria")))
        setup = Setup(
            one=run("one", scale.remote_write(whole, f"{victoria}/api/v1/write")),
            lean=run("lean", scale.lean(whole, render.read(SETTINGS))),
            shards=shards,
            federation=run("federation", federation),
            receiver=receiver,
            victoria_metrics=victoria,
        )
        wait(lambda: scraped(setup.one), PATIENCE)
        wait(lambda: all(map(scraped, shards)), PATIENCE)
        yield setup


@contextlib.contextmanager
def victoria_metrics(url: str, directory: Path) -> Iterator[None]:
    """It serves there, and keeps its data in the directory."""
    address = urllib.parse.urlsplit(url).netloc
    argv = ["victoria-metrics", f"-httpListenAddr={address}", f"-storageDataPath={directory}"]
    with subprocess.Popen([*argv, "-loggerLevel=ERROR"]) as process:
        try:
            yield
        finally:
            process.terminate()


def with_rules(directory: Path) -> Path:
    """The directory, with the rule files where `scrape` looks for them."""
    for path, text in render.files(SETTINGS).items():
        if path.startswith("rendered/"):
            (directory / path).parent.mkdir(exist_ok=True)
            (directory / path).write_text(text)
    return directory


def node() -> tuple[str, str]:
    """Two scrapes of a node, a second apart, that drifts and is busy: all that counts has grown."""
    first = "".join((GOLDEN / f"{name}.prom").read_text() for name in ("drift", "iptables"))
    kinds = [line for line in first.splitlines() if line.startswith("# TYPE ")]
    later = [
        f"{each.series} {float(each.value) + (10 if each.grows else 0)}" for each in samples(first)
    ]
    return first, "\n".join([*kinds, *later, ""])


def scrape(address: str) -> dict[str, Any]:
    """The example of a configuration, of the fleet."""
    config = prometheus.config(SETTINGS)
    (job,) = config["scrape_configs"]
    return {
        **config,
        "alerting": {},
        "scrape_configs": [{**job, "static_configs": targets(address, NODES)}],
    }


def recorded(server: Prometheus) -> set[Series]:
    """All series there that RECORDED takes."""
    return {each for each in everything(server) if taken(dict(each))}


def everything(server: Prometheus) -> set[Series]:
    """All series there."""
    return {frozenset(labels.items()) for labels, _ in server.query('{__name__=~".+"}')}


def settled(setup: Setup) -> set[Series]:
    """What the one has recorded, once it and all others have recorded the same."""
    seen: dict[str, set[Series]] = {}

    def agree() -> bool:
        seen["one"] = recorded(setup.one)
        seen["shards"] = set().union(*map(recorded, setup.shards))
        seen["federation"] = recorded(setup.federation)
        seen["receiver"] = recorded(setup.receiver)
        names = {dict(each)["__name__"] for each in seen["one"]}
        return len(names) > 80 and all(each == seen["one"] for each in seen.values())

    def differences() -> str:
        return "; ".join(
            f"{name}: {len(each)}, {list(each ^ seen['one'])[:3]}" for name, each in seen.items()
        )

    wait(agree, PATIENCE, differences)
    return seen["one"]


def scraped(server: Prometheus) -> set[str]:
    """Nodes that are its targets."""
    return {each["labels"]["node"] for each in server.get("targets")["activeTargets"]}


@with_prometheus
def test_shards_divide_the_nodes_without_loss_or_overlap_and_keep_clusters_whole(
    setup: Setup,
) -> None:
    parts = [scraped(shard) for shard in setup.shards]
    assert sorted(itertools.chain(*parts)) == sorted(NODES)
    clusters = [{NODES[node] for node in part} for part in parts]
    assert not clusters[0] & clusters[1]


@with_prometheus
def test_shards_federation_and_receiver_hold_what_one_prometheus_records(setup: Setup) -> None:
    series = settled(setup)
    clusters = {dict(each).get("cluster") for each in series}
    assert clusters == {None, *NODES.values()} or clusters == {*NODES.values()}
    names = {dict(each)["__name__"] for each in series}
    assert {"ALERTS", "sloth_slo_info", "cluster:vipscope_up:sum"} <= names


@with_prometheus
def test_aggregates_are_those_of_one_prometheus(setup: Setup) -> None:
    settled(setup)
    for expr in (
        "cluster:vipscope_up:sum",
        "cluster:vipscope_kube_proxy_rules:avg",
        "cluster_kind:vipscope_drift_services:sum",
        "cluster:vipscope_series:sum",
    ):
        expected = sorted((labels["cluster"], value) for labels, value in setup.one.query(expr))
        assert len(expected) >= len(set(NODES.values()))
        for server in (setup.federation, setup.receiver):
            found = sorted((labels["cluster"], value) for labels, value in server.query(expr))
            assert found == expected


@with_prometheus
def test_the_receiver_gets_nothing_else(setup: Setup) -> None:
    settled(setup)
    assert all(taken(dict(each)) for each in everything(setup.receiver))


@with_prometheus
def test_federation_has_nothing_else_but_how_its_own_scrapes_went(setup: Setup) -> None:
    settled(setup)
    others = [dict(each) for each in everything(setup.federation) if not taken(dict(each))]
    assert {each["job"] for each in others} == {"federate"}
    assert {each["__name__"] for each in others} == {"up", *SCRAPE}


SCRAPE = {
    f"scrape_{each}"
    for each in (
        "duration_seconds", "samples_post_metric_relabeling", "samples_scraped", "series_added",
    )
}  # fmt: skip


@with_prometheus
def test_lean_records_the_same_of_fewer_series(setup: Setup) -> None:
    expected = settled(setup)
    wait(lambda: recorded(setup.lean) == expected, PATIENCE)
    few, all_ = (
        sum(value for _, value in server.query("scrape_samples_post_metric_relabeling"))
        for server in (setup.lean, setup.one)
    )
    assert few < 0.9 * all_


@with_prometheus
@with_victoria_metrics
def test_victoria_metrics_takes_the_same_and_nothing_else(setup: Setup) -> None:
    expected = settled(setup)
    url = setup.victoria_metrics

    def arrived() -> set[Series]:
        urllib.request.urlopen(f"{url}/internal/force_flush").close()  # else it takes its time
        query = urllib.parse.urlencode({"match[]": '{__name__!=""}'})
        with urllib.request.urlopen(f"{url}/api/v1/series?{query}") as answer:
            return {frozenset(each.items()) for each in json.load(answer)["data"]}

    wait(lambda: arrived() >= expected, PATIENCE, lambda: len(arrived()))
    assert all(taken(dict(each)) for each in arrived())
