"""What /metrics says: golden files of whole nodes, and the rules that each exposition keeps.

`UPDATE_GOLDEN=1 make test ARGS=tests/test_exposition.py` writes the golden files anew.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.lab.apiserver import ApiServer, Object, captured, kubeconfig
from tests.lab.namespace import Namespace, requirements
from tests.lab.node import furnish, knock
from tests.stubs import RECORD, Stub, stub, until
from vipscope import metrics as m
from vipscope.budget import Budget
from vipscope.collectors import cluster, nftables
from vipscope.collectors.base import Collector
from vipscope.collectors.cluster import ClusterCollector
from vipscope.collectors.drift import DriftCollector
from vipscope.collectors.ipvs import IpvsCollector
from vipscope.collectors.kubeproxy import parse_metrics
from vipscope.collectors.nftables import Nftables
from vipscope.collectors.xtables import Xtables
from vipscope.exposition import Exposition, choose_encoder
from vipscope.netlink import ipvs as ipvs_netlink
from vipscope.netlink import links
from vipscope.netlink.nf_tables import Reader
from vipscope.probe.prober import BOUNDS, PATHS
from vipscope.runner import Runner
from vipscope.server import Server
from vipscope.settings import COLLECTORS, Address, Settings
from vipscope.snapshot import (
    AbsentError,
    Cluster,
    Conntrack,
    Count,
    Drift,
    Follow,
    Histogram,
    KubeProxy,
    Node,
    Outcome,
    Pressure,
    Probes,
    Reading,
    Record,
    Ruleset,
    Snapshot,
)
from vipscope.sources import Sources

TESTS = Path(__file__).parent
CAPTURES = TESTS / "captures"
GOLDEN = TESTS / "golden"
README = TESTS.parent / "README.md"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"

TEXT = ""
FORMATS = {"prom": TEXT, "openmetrics": "application/openmetrics-text;version=1.0.0"}
"""Ending of a golden file -> the Accept header that asks for it."""
PARSERS: Mapping[str, Callable[[str], Iterable[Family]]] = {
    "prom": text_string_to_metric_families,
    "openmetrics": openmetrics.text_string_to_metric_families,
}

VOLATILE = (
    m.COLLECTOR_DURATION,
    m.COLLECTOR_CPU,
    m.COLLECTOR_LAST_SUCCESS,
    m.GENERATION,
    m.LAST_CHANGE,
    m.SNAPSHOT_AGE,
    m.WATCH_LAST_EVENT,
    m.WEB_CONFIG_RELOAD_TIME,
    m.DRIFT_OLDEST,
    m.NEW_CONNECTIONS,
    m.IMBALANCE,
    m.PROGRAMMING_LATENCY,
    m.PROGRAMMING_LATENCY_FROM_EVENT,
)
"""Whose values differ from run to run: times, CPU, ages, and the generation, which counts what the
tool that loads a ruleset makes of it. Golden files have 0 there."""
_VALUES = re.compile(
    rf"^((?:{'|'.join(map(str, VOLATILE))})(?:_bucket|_sum|_count)?(?:{{.*}})?) \S+$", re.MULTILINE
)
_VERSIONS = re.compile(rf"^{m.BUILD_INFO}{{.*}}", re.MULTILINE)


def normalised(text: str) -> str:
    """The exposition as golden files keep it: no volatile value, and no versions."""
    text = _VERSIONS.sub(f'{m.BUILD_INFO}{{python="0",version="0"}}', text)
    return _VALUES.sub(r"\1 0.0", text)


# --- nodes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoldenNode:
    """A node of the captures: how its ruleset is loaded, and what changes while it is watched."""

    load: Callable[[Namespace], object]
    kube_proxy: str
    """kube-proxy's mode, whose /metrics were captured."""
    change: tuple[str, str] | None = None
    """A command that changes nf_tables while it is watched, and its input."""
    ipvs: bool = False


def _load_iptables(namespace: Namespace) -> None:
    namespace.restore((CAPTURES / "iptables/small.v4.save").read_text())
    namespace.restore((CAPTURES / "iptables/small.v6.save").read_text(), family="ipv6")


def _load_legacy(namespace: Namespace) -> None:
    namespace.restore((CAPTURES / "iptables/small.v4.save").read_text(), "legacy")
    namespace.restore((CAPTURES / "iptables/small.v6.save").read_text(), "legacy", "ipv6")


def _bind_addresses(namespace: Namespace) -> None:
    """Bind the virtual servers' addresses, and the node's own of its NodePorts."""
    addresses = re.findall(r"[0-9.]+/32", (CAPTURES / "ipvs/kube-ipvs0.txt").read_text())
    addresses += ["192.168.77.13/24", "192.168.79.13/24"]
    batch = "".join(f"address add {address} dev lo\n" for address in addresses)
    namespace.run("ip", "-batch", "-", stdin=batch)


NODES = {
    "iptables": GoldenNode(
        load=_load_iptables,
        kube_proxy="iptables",
        change=(
            "iptables-nft-restore --noflush",
            "*nat\n:KUBE-SEP-NEW - [0:0]\n-A KUBE-SEP-NEW -j RETURN\nCOMMIT\n",
        ),
    ),
    "nftables": GoldenNode(
        load=lambda namespace: namespace.nft((CAPTURES / "nftables/small.nft").read_text()),
        kube_proxy="nftables",
        change=(
            "nft -f -",
            """\
add set ip kube-proxy more { type ipv4_addr; }
add element ip kube-proxy cluster-ips { 192.0.2.1 }
delete element ip kube-proxy cluster-ips { 10.96.0.1 }
flush chain ip kube-proxy masquerading
""",
        ),
    ),
    "legacy": GoldenNode(load=_load_legacy, kube_proxy="iptables"),
    "ipvs": GoldenNode(load=_bind_addresses, kube_proxy="ipvs", ipvs=True),
}


async def _absent(_: Stub) -> Record:
    raise AbsentError("the node has none")


async def _conntrack(_: Stub) -> Record:
    statistics = {name: number for number, name in enumerate(m.CONNTRACK)}
    return Conntrack(entries=1234, limit=262144, buckets=65536, statistics=statistics)


async def _pressure(_: Stub) -> Record:
    return Pressure(
        tcp_syn_retransmits=17,
        softnet_dropped=0,
        softnet_time_squeezed=3,
        softirq_seconds=12.34,
        xtables_lock_held=1,
        xtables_lock_waiters=2,
    )


def _kube_proxy(mode: str) -> Stub:
    state = parse_metrics((CAPTURES / f"metrics/kube-proxy.{mode}.prom").read_bytes())

    async def read(_: Stub) -> Record:
        return KubeProxy(
            healthy=True,
            mode=mode,
            sync_pending_seconds=0.0,
            last_sync=min(state.synced.values()),
            restore_failures=state.restore_failures,
            intended_rules=state.intended_rules,
        )

    return stub("kubeproxy", read)


async def _probes(_: Stub) -> Record:
    spread = Histogram(BOUNDS, (1, 2, 3) + (0,) * (len(BOUNDS) - 2), 0.0009765625)
    return replace(
        PROBES,
        durations={("web", path): spread for path in PATHS},
        failures={("web", path, "refused"): number for number, path in enumerate(PATHS)},
    )


def _captured_procfs(directory: Path) -> Path:
    """The files of procfs that IPVS has on the captured node."""
    sysctls = directory / "sys/net/ipv4/vs"
    sysctls.mkdir(parents=True)
    for name, value in {"conn_reuse_mode": 1, "expire_nodest_conn": 1, "run_estimation": 1}.items():
        (sysctls / name).write_text(f"{value}\n")
    (directory / "net").mkdir()
    for name in ("ip_vs", "ip_vs_stats"):
        (directory / "net" / name).symlink_to(CAPTURES / f"ipvs/proc_net_{name}")
    return directory


async def _exposed(node: GoldenNode, procfs: Path) -> dict[str, str]:
    """Ending -> what /metrics of an exporter in the present network namespace answers."""
    settings, budget = Settings(listen_addresses=(Address("127.0.0.1", 0),)), Budget(1.0)
    nftables = Nftables(settings, budget)
    ipvs = IpvsCollector(replace(settings, procfs=procfs), budget) if node.ipvs else None
    collectors: list[Collector] = [
        nftables,
        Xtables(settings, budget),
        ipvs or stub("ipvs", _absent),
        stub("conntrack", _conntrack),
        stub("pressure", _pressure),
        _kube_proxy(node.kube_proxy),
        stub("probe", _probes),
    ]

    async def change(runner: Runner) -> None:
        if node.change:
            await asyncio.to_thread(_run, *node.change)
            await until(lambda: _generation(runner) == _kernel_generation())

    return await _answers(settings, collectors, budget, change)


async def _answers(
    settings: Settings,
    collectors: Sequence[Collector],
    budget: Budget,
    change: Callable[[Runner], Awaitable[None]],
) -> dict[str, str]:
    """Ending -> what /metrics answers after the collectors' first reads and then the change."""
    runner = Runner(Node("node1", "6.1.0-25-amd64"), collectors, (), budget)
    server = Server(settings, runner, Exposition())
    await server.start()
    runner.start()
    try:
        await until(lambda: runner.ready)
        await change(runner)
        url = f"http://127.0.0.1:{server.ports[0]}/metrics"
        async with aiohttp.ClientSession() as session:
            return {ending: await _get(session, url, accept) for ending, accept in FORMATS.items()}
    finally:
        await server.stop()
        await runner.stop()


def _run(command: str, stdin: str) -> None:
    subprocess.run(command.split(), input=stdin.encode(), check=True)


async def _get(session: aiohttp.ClientSession, url: str, accept: str) -> str:
    async with session.get(url, headers={"Accept": accept}) as answer:
        assert answer.status == 200
        return await answer.text()


def _generation(runner: Runner) -> int | None:
    record = runner.snapshot.readings["nftables"].record
    return record.generation if isinstance(record, Ruleset) else None


def _kernel_generation() -> int:
    reader = Reader()
    try:
        return reader.generation()
    finally:
        reader.close()


def expose(node: GoldenNode, procfs: Path) -> dict[str, str]:
    # What is not in procfs: the kernel's own number, and the device that holds the addresses.
    with (
        mock.patch.object(ipvs_netlink, "ipv4_services", return_value=49),
        mock.patch.object(links, "index", return_value=7),
    ):
        return asyncio.run(_exposed(node, procfs))


@pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
@pytest.mark.parametrize("name", NODES)
def test_metrics_of_a_node_are_those_of_its_golden_files(name: str, tmp_path: Path) -> None:
    with Namespace() as namespace:
        NODES[name].load(namespace)
        exposed = namespace.call(expose, NODES[name], _captured_procfs(tmp_path))
    _compare(name, exposed)


def _compare(name: str, exposed: Mapping[str, str]) -> None:
    for ending, text in exposed.items():
        path = GOLDEN / f"{name}.{ending}"
        if UPDATE:
            path.write_text(normalised(text))
        assert normalised(text) == path.read_text(), "if that is meant, see how in CONTRIBUTING.md"


# --- the cluster ----------------------------------------------------------------------------------


def captured_long_ago() -> dict[str, list[Object]]:
    """The captured cluster, long enough ago for a load balancer to be overdue by any clock."""
    objects = captured()
    for each in objects["services"]:
        each["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    return objects


async def test_metrics_of_a_cluster_are_those_of_its_golden_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "COALESCE", 0.05)
    with ApiServer(captured_long_ago()) as server:
        server.misbehave("gone", "watch", resource="endpointslices")
        settings = Settings(
            listen_addresses=(Address("127.0.0.1", 0),),
            kubeconfig=kubeconfig(tmp_path, server.url),
            web_config=tmp_path / "web.yml",
            top_services=3,
        )
        (tmp_path / "web.yml").touch()

        async def change(runner: Runner) -> None:
            def events() -> int:
                record = runner.snapshot.readings["cluster"].record
                return sum(record.slice_events.values()) if isinstance(record, Cluster) else 0

            for resource in ("services", "endpointslices"):
                await until(lambda: server.order("watchers", resource=resource), 20)  # noqa: B023
            server.order("replay", resource="endpointslices")
            await until(lambda: events() == 192, 20)

        budget = Budget(1.0)
        exposed = await _answers(settings, [ClusterCollector(settings, budget)], budget, change)
    _compare("cluster", exposed)


# --- drift ----------------------------------------------------------------------------------------


async def _drifting(directory: Path) -> dict[str, str]:
    """What an exporter answers that finds a Service too many, and then that no packet comes in."""
    objects = captured()
    objects["services"].pop()
    with ApiServer(objects) as server:
        settings = Settings(
            listen_addresses=(Address("127.0.0.1", 0),),
            kubeconfig=kubeconfig(directory, server.url),
            node_name="node1",
            top_services=3,
            drift_grace=0.0,
        )
        budget, sources = Budget(1.0), Sources()
        collectors = [
            Nftables(settings, budget, sources),
            DriftCollector(settings, budget, sources),
        ]

        async def change(runner: Runner) -> None:
            def drift() -> Drift | None:
                record = runner.snapshot.readings["drift"].record
                return record if isinstance(record, Drift) else None

            def shows(kind: str) -> bool:
                record = drift()
                return record is not None and any(each.kind == kind for each in record.named)

            await until(lambda: shows("orphaned"))
            while not ((found := drift()) and found.imbalance):
                await asyncio.to_thread(knock, "10.101.49.221", 50)
                await asyncio.sleep(0.2)
            await asyncio.to_thread(_run, "nft flush chain ip nat PREROUTING", "")
            await until(lambda: (found := drift()) is not None and "prerouting" in found.faults)

        return await _answers(settings, collectors, budget, change)


@pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
def test_metrics_of_a_node_that_drifts_are_those_of_its_golden_files(tmp_path: Path) -> None:
    with Namespace() as namespace:
        _load_iptables(namespace)
        furnish(namespace)
        with mock.patch.multiple(nftables, LEAST_SECONDS=0.1, SHARE=1.0):
            exposed = namespace.call(lambda: asyncio.run(_drifting(tmp_path)))
    _compare("drift", exposed)


# --- golden files ---------------------------------------------------------------------------------

FILES = sorted(path for path in GOLDEN.iterdir() if path.suffix[1:] in FORMATS)
TEXT_FILES = [path for path in FILES if path.suffix == ".prom"]

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def samples_in(path: Path) -> list[tuple[Family, Sample]]:
    families = PARSERS[path.suffix[1:]](path.read_text())
    return [(family, sample) for family in families for sample in family.samples]


def metric_of(family: Family, sample: Sample) -> str:
    """The metric that a sample is of: a histogram's are named after what they hold."""
    return family.name if family.type == "histogram" else sample.name


def test_each_node_and_the_cluster_have_a_golden_file_in_each_format() -> None:
    names = [*NODES, "cluster", "drift"]
    assert {path.name for path in FILES} == {f"{name}.{end}" for name in names for end in FORMATS}


@pytest.mark.skipif(not shutil.which("promtool"), reason="the command promtool is not installed")
@pytest.mark.parametrize("path", TEXT_FILES, ids=lambda path: path.name)
def test_promtool_finds_no_fault(path: Path) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=path.read_text(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@each_file
def test_every_sample_is_one_that_the_catalogue_declares(path: Path) -> None:
    catalogue = {metric.name: metric for metric in m.CATALOGUE}
    for family, sample in samples_in(path):
        metric = catalogue[metric_of(family, sample)]
        assert sample.labels.keys() - {"le"} == set(metric.labels)
        # OpenMetrics leaves the type unsaid where a gauge has the counter's name without `_total`.
        untyped = path.suffix == ".openmetrics" and metric is m.IPVS_CONNECTIONS_TOTAL
        assert family.type == ("unknown" if untyped else metric.kind)
        assert family.documentation == metric.help


FORMULA = re.search(r"^    (\d+ \+ .*·targets)$", README.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["iptables", "legacy", "nftables", "ipvs"])
def test_a_node_has_as_many_series_as_the_readme_computes(name: str) -> None:
    families = text_string_to_metric_families((GOLDEN / f"{name}.prom").read_text())
    samples = [sample for family in families for sample in family.samples]

    def values(metric: m.Metric, *labels: str) -> set[tuple[str, ...]]:
        found = [sample.labels for sample in samples if sample.name == metric.name]
        return {tuple(each[label] for label in labels or metric.labels) for each in found}

    kinds = {
        "collectors": values(m.COLLECTOR_STATE, "collector"),
        "groups": values(m.RULES),
        "families": values(m.SERVICE_RULE_DEPTH, "family"),
        "sets": values(m.SET_ELEMENTS),
        "legacy tables": values(m.XTABLES_ENTRIES),
        "writers": values(m.CHANGES),
        "IPVS kinds": values(m.IPVS_VIRTUAL_SERVERS) | values(m.IPVS_REAL_SERVERS),
        "targets": values(m.PROBE_FAILURES, "probe"),
    }
    assert FORMULA is not None
    computed = 0
    for term in FORMULA[1].split(" + "):
        factor, _, kind = term.rpartition("·")
        computed += int(kind) if kind.isdigit() else int(factor or 1) * len(kinds.pop(kind))
    assert not kinds
    assert abs(len(samples) - computed) <= 10


def test_every_metric_is_in_a_golden_file() -> None:
    shown = {
        metric_of(family, sample) for path in TEXT_FILES for family, sample in samples_in(path)
    }
    assert shown == {metric.name for metric in m.CATALOGUE}


@each_file
def test_no_series_is_there_twice_and_their_number_is_right(path: Path) -> None:
    samples = [sample for _, sample in samples_in(path)]
    series = {(sample.name, *sorted(sample.labels.items())) for sample in samples}
    assert len(series) == len(samples)
    (own,) = [sample.value for sample in samples if sample.name == m.SERIES.name]
    assert own == len(samples)


# --- any exposition -------------------------------------------------------------------------------

NODE = Node("node1", "6.1.0")
ALL = frozenset(COLLECTORS)
RULESET = Ruleset(
    backend="nft",
    counts={("ipv4", "nat", "kube-proxy", "service"): Count(rules=3, chains=2)},
    set_elements={},
    depths={"ipv4": (4,)},
    counted_at=1000.0,
    generation=7,
    follow=Follow(transactions={"nft": 1}, changes={}, resyncs={"start": 1}, last_change=900.0),
)


def snapshot(**readings: Reading) -> Snapshot:
    return Snapshot(NODE, readings)


def ok(record: Record) -> Reading:
    return Reading(Outcome.OK, duration=0.1, last_success=1000.0, record=record)


def rendered(what: Snapshot, accept: str = TEXT, now: float = 1000.0) -> str:
    text, _ = asyncio.run(Exposition().render(what, ALL, accept, now))
    return text.decode()


def samples_of(text: str, metric: m.Metric) -> dict[tuple[str, ...], float]:
    """Label values, in the catalogue's order -> value."""
    return {
        tuple(sample.labels[label] for label in metric.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric.name
    }


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.OK])
def test_on_any_outcome_but_ok_a_collectors_series_are_withheld(outcome: Outcome) -> None:
    readings = {"nftables": ok(RULESET), "conntrack": ok(RECORD)}
    before = rendered(snapshot(**readings))
    assert samples_of(before, m.RULES)
    after = rendered(snapshot(**readings | {"nftables": Reading(outcome, last_success=1000.0)}))
    gone = (m.RULES, m.CHAINS, m.SERVICE_RULE_DEPTH, m.GENERATION, m.TRANSACTIONS, m.RESYNCS)
    for metric in (*gone, m.LAST_CHANGE, m.SNAPSHOT_AGE):
        assert not samples_of(after, metric)
    assert samples_of(after, m.CONNTRACK_ENTRIES) == {(): 7}
    states = samples_of(after, m.COLLECTOR_STATE)
    assert {state for (name, state), on in states.items() if name == "nftables" and on} == {outcome}
    assert len(states) == 2 * len(Outcome)
    assert samples_of(after, m.COLLECTOR_LAST_SUCCESS)["nftables",] == 1000


async def test_ages_are_those_of_the_scrape_though_the_text_is_rendered_once() -> None:
    exposition, what = Exposition(), snapshot(nftables=ok(RULESET))
    for now, age in ((1000.0, 0.0), (1007.5, 7.5), (990.0, 0.0)):
        text, _ = await exposition.render(what, ALL, TEXT, now)
        assert samples_of(text.decode(), m.SNAPSHOT_AGE) == {("nft",): age}
    assert len(exposition._bodies) == 1


async def test_a_new_snapshot_is_rendered_anew_and_the_old_text_forgotten() -> None:
    exposition = Exposition()
    for entries in (1, 2):
        what = snapshot(conntrack=ok(replace(RECORD, entries=entries)))
        for wanted in (ALL, frozenset({"conntrack"})):
            text, _ = await exposition.render(what, wanted, TEXT, 0.0)
            assert samples_of(text.decode(), m.CONNTRACK_ENTRIES) == {(): entries}
        assert len(exposition._bodies) == 2


async def test_a_scraper_that_hangs_up_takes_nothing_from_the_others() -> None:
    exposition, what = Exposition(), snapshot(nftables=ok(RULESET))
    first = asyncio.create_task(exposition.render(what, ALL, TEXT, 0.0))
    await asyncio.sleep(0)
    second = asyncio.create_task(exposition.render(what, ALL, TEXT, 0.0))
    first.cancel()
    text, _ = await second
    assert first.cancelled()
    assert samples_of(text.decode(), m.GENERATION) == {(): 7}


PROBES = Probes(
    durations={},
    failures={},
    handshakes={("web", "vip"): (0.00025,) * 10, ("web", "direct"): (0.000125,) * 10},
    loopback={"ipv4": (100e-6,) * 10, "ipv6": ()},
)


def first_packet_cost(*rulesets: Ruleset) -> dict[str, float]:
    counted = dict(zip(("nftables", "xtables"), map(ok, rulesets), strict=False))
    what = snapshot(**counted, probe=ok(PROBES))
    samples = samples_of(rendered(what), m.FIRST_PACKET_COST)
    return {kind: value for (kind,), value in samples.items()}


def test_the_modelled_cost_takes_the_depth_of_the_ruleset_that_was_counted() -> None:
    deep = replace(RULESET, depths={"ipv4": (500, 1000), "ipv6": (1, 499)})
    assert first_packet_cost(deep) == pytest.approx({"measured": 125e-6, "modelled": 50e-6})


def test_a_rule_s_cost_that_this_node_cannot_tell_is_no_modelled_cost() -> None:
    assert first_packet_cost(RULESET) == {"measured": 125e-6}  # few rules
    by_ipv6 = replace(RULESET, depths={"ipv6": (500, 1000)})  # of which nothing is measured
    assert first_packet_cost(by_ipv6) == {"measured": 125e-6}


def test_without_one_known_ruleset_there_is_no_modelled_cost() -> None:
    assert first_packet_cost() == {"measured": 125e-6}
    leftovers = replace(RULESET, backend="legacy")
    assert first_packet_cost(RULESET, leftovers) == {"measured": 125e-6}


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "nonsense",
        ",;,=;;",
        "text/html",
        "application/json;q=1",
        "application/openmetrics-text;version=9z",
        "application/openmetrics-text;version=0.0.1",
        "text/plain;version=" + "1" * 5000,
        "text/plain;escaping=nonsense",
        "\xff\xfe",
    ],
)
def test_an_accept_header_that_makes_no_sense_is_answered_with_plain_text(accept: str) -> None:
    _, content_type = choose_encoder(accept)
    assert content_type.startswith("text/plain; version=")
    samples = samples_of(rendered(snapshot(conntrack=ok(RECORD)), accept), m.CONNTRACK_ENTRIES)
    assert samples == {(): 7}


@given(accept=st.text(max_size=60))
def test_any_accept_header_is_answered(accept: str) -> None:
    encoder, content_type = choose_encoder(accept)
    assert content_type.startswith(("text/plain; version=", "application/openmetrics-text; "))
    assert encoder is not None


LABEL_VALUES = st.text(
    st.one_of(
        st.sampled_from('"\\\n\r\t{},= #\u2028\x85\x00'),
        st.characters(codec="utf-8"),
    ),
    max_size=12,
)


@pytest.mark.parametrize("form", FORMATS)
@given(process=LABEL_VALUES, table=LABEL_VALUES, node=LABEL_VALUES)
def test_hostile_label_values_survive_a_round_trip(
    form: str, process: str, table: str, node: str
) -> None:
    hostile = replace(
        RULESET,
        counts={("ipv4", table, "other", ""): Count(rules=3, chains=2)},
        follow=Follow(transactions={process: 5}, changes={}, resyncs={}, last_change=None),
    )
    text = rendered(Snapshot(Node(node, "6"), {"nftables": ok(hostile)}), FORMATS[form])
    found = {sample.name: sample for family in PARSERS[form](text) for sample in family.samples}
    assert found[m.RULES.name].labels["table"] == table
    assert found[m.TRANSACTIONS.name].labels["process"] == process
    assert found[m.TRANSACTIONS.name].value == 5
    assert found[m.NODE_INFO.name].labels == {"nodename": node, "zone": "", "kernel": "6"}


def test_before_any_read_the_exporter_shows_itself() -> None:
    text = rendered(snapshot())
    names = {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }
    assert names == {m.BUILD_INFO.name, m.NODE_INFO.name, m.SERIES.name}
