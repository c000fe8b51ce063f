"""The page for people: what it says of a snapshot, and what a browser makes of it."""

from __future__ import annotations

import html
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests import screenshots
from tests.diagnosis.test_findings import (
    CLUSTER,
    CONNTRACK,
    DRIFT,
    IPVS,
    KERNEL,
    NFT,
    NOW,
    snapshot,
)
from tests.lab import browser
from tests.lab.namespace import Namespace
from tests.screenshots import BREAKS, PICTURES, SIZE, URL, shows, watched
from tests.test_doctor import in_namespace, load_iptables, shell
from tools.generate import COMMANDS
from vipscope import page as room
from vipscope.diagnosis.findings import findings
from vipscope.history import INTERVAL, LENGTH, History, Sample
from vipscope.page import MOST, POLICY, Links, Page, page
from vipscope.settings import COLLECTORS
from vipscope.snapshot import (
    Count,
    Disagreement,
    Histogram,
    Node,
    Outcome,
    Probes,
    Reading,
    Snapshot,
)

LINKS = Links("/metrics", "")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
LONG = "x" * 253
"""As long as a Service's DNS name may be, and without a place to break it."""

in_chromium = pytest.mark.skipif(
    bool(browser.requirements()), reason="; ".join(browser.requirements())
)


def text_of(rendered: str) -> str:
    """What can be read of it, a line an element."""
    parts: list[str] = []
    parser = HTMLParser()
    parser.handle_data = parts.append  # type: ignore[assignment,method-assign]
    parser.feed(rendered)
    return "\n".join(part for part in parts if part != room.STYLE)


def shown(of: Snapshot, history: Sequence[Sample] = (), links: Links = LINKS) -> str:
    return page(of, history, NOW, links)


BROKEN = replace(
    DRIFT,
    faults={"prerouting": 90.0},
    services={"missing": 43, "orphaned": 1},
    endpoints={"missing": 1, "stale": 0},
    oldest=95.0,
    named=(
        Disagreement("missing_endpoints", "shop", "cart", "http", "", 95.0, ("10.0.0.1:80",)),
        Disagreement("orphaned", "", "", "", "10.96.0.9:80/tcp", 12.0, ()),
    ),
)


# --- what it says ---------------------------------------------------------------------------------


def test_of_a_healthy_node_it_says_that_nothing_is_wrong_and_what_there_is() -> None:
    said = text_of(shown(snapshot()))
    assert "Nothing is wrong" in said
    for what in ("iptables", "node1", KERNEL, "is as the API wants it", "healthy", "799"):
        assert what in said
    assert "of 1,000 (80%)" in said
    assert "367 rules in nf_tables" in said


def test_it_shows_each_finding_with_its_reasons_and_what_to_do_worst_first() -> None:
    said = text_of(shown(snapshot(drift=BROKEN)))
    found = findings(snapshot(drift=BROKEN), NOW)
    assert len(found) == 3
    assert "3 findings: 2 broken, 1 warning" in said
    at = [said.index(each.title) for each in found]
    assert at == sorted(at)
    for each in found:
        assert each.id in said
        assert each.advice in said
        assert all(line in said for line in each.evidence)


def test_rules_are_told_by_owner_and_class_with_all_families_together() -> None:
    counts = {
        ("ipv4", "nat", "kube-proxy", "endpoint"): Count(200_000, 65_000),
        ("ipv6", "nat", "kube-proxy", "endpoint"): Count(5_000, 1_000),
        ("ipv4", "filter", "calico", ""): Count(5, 2),
    }
    rendered = shown(snapshot(nftables=replace(NFT, counts=counts)))
    assert re.search(
        r">kube-proxy: endpoint</th><td[^>]*>205,000</td><td></td><td[^>]*>66,000<", rendered
    )
    assert ">calico</th>" in rendered
    assert "205,005 rules in nf_tables" in rendered
    assert ">ipv6 nat</th>" in rendered


def test_the_clusters_part_has_services_by_type_and_the_unroutable_by_reason() -> None:
    cluster = replace(
        CLUSTER,
        services={"ClusterIP": 40, "NodePort": 3},
        slices={"IPv4": 44},
        unroutable={
            ("shop", "cart", "http", "pods_not_ready"): "no Pod is ready: cart-1",
            ("shop", "cart", "grpc", "port_name_mismatch"): "no Pod has it",
        },
        unroutable_services={"pods_not_ready": 1, "port_name_mismatch": 1, "no_pods": 0},
    )
    alone = {name: Reading(Outcome.DISABLED) for name in COLLECTORS}
    alone["cluster"] = Reading(Outcome.OK, record=cluster)
    for of in (Snapshot(Node("n", "6"), alone), snapshot(cluster=cluster)):
        rendered = shown(of)
        assert '>NodePort</th><td class="n">3<' in rendered
        assert '>pods not ready</th><td class="n">1<' in rendered
        assert "43 Services and 44 EndpointSlices" in rendered
        assert "Unroutable Services<b>1</b>" in rendered  # of two ports
        assert "shop/cart:http: no Pod is ready: cart-1" in rendered
    assert "Drift" not in shown(Snapshot(Node("n", "6"), alone))


def test_virtual_servers_are_shown_where_there_are_any() -> None:
    assert "40 virtual servers in IPVS" in shown(snapshot(ipvs=IPVS))
    assert "in IPVS" not in shown(snapshot(ipvs=replace(IPVS, virtual_servers={})))


def test_the_prober_is_shown_where_it_has_anything_to_probe() -> None:
    probes = Probes(
        durations={("web", "vip"): Histogram((), (3,), 0.004)},
        failures={("web", "vip", "timeout"): 2, ("dns", "vip", "refused"): 1},
        handshakes={("web", "vip"): (0.001, 0.0021, 0.003), ("web", "direct"): (0.0005,)},
        loopback={"ipv4": (), "ipv6": ()},
    )
    said = text_of(shown(snapshot(probe=probes)))
    for what in ("2.10 ms", "straight to an endpoint: 0.50 ms", "3 failures since"):
        assert what in said
    silent = replace(probes, handshakes={("web", "vip"): (), ("web", "direct"): ()})
    assert "straight to an endpoint: none" in text_of(shown(snapshot(probe=silent)))
    nothing = replace(probes, durations={})
    assert "Handshake" not in shown(snapshot(probe=nothing))


@pytest.mark.parametrize(
    ("reading", "cells"),
    [
        (None, ("waiting",)),
        (Reading(Outcome.DISABLED), ("disabled",)),
        (Reading(Outcome.DENIED, "no NET_ADMIN", 0.002, 0.25), ("denied", "never", "2.0 ms")),
        (Reading(Outcome.TIMEOUT, "hangs", 10.0, 1.5, NOW - 90), ("timeout", "90 s ago", "1.50 s")),
        (Reading(Outcome.OK, "", 0.1, 0.25, NOW - 3, CONNTRACK), ("ok", "3 s ago", "100.0 ms")),
    ],
)
def test_each_collector_is_told_with_outcome_age_and_cost(
    reading: Reading | None, cells: Sequence[str]
) -> None:
    readings = dict(snapshot().readings)
    del readings["conntrack"]
    if reading is not None:
        readings["conntrack"] = reading
    rendered = shown(Snapshot(Node("n", "6"), readings))
    (row,) = re.findall(r"<tr><th scope=\"row\">conntrack</th>.*?</tr>", rendered)
    assert all(f">{cell}<" in row for cell in cells)
    assert reading is None or reading.detail in row


def test_what_has_not_been_read_is_not_taken_for_well() -> None:
    assert "Reading" in text_of(shown(Snapshot(Node("n", "6"))))
    assert "wrong" not in text_of(shown(Snapshot(Node("n", "6"))))
    readings = {"conntrack": snapshot().readings["conntrack"]}
    said = text_of(shown(Snapshot(Node("n", "6"), readings)))
    assert "Nothing is wrong so far; not read yet: nftables, " in said


def test_what_could_not_be_read_has_no_numbers() -> None:
    said = text_of(shown(snapshot(conntrack=Reading(Outcome.FAILED, "odd"))))
    assert "Tracked connections" not in said
    assert "collector conntrack: failed" in said


def test_lists_of_strangers_are_cut_and_say_so() -> None:
    tables = {("ipv4", f"t{number}", "other", ""): Count(1, 1) for number in range(500)}
    cluster = replace(
        CLUSTER, unroutable={("n", f"s{i}", "", "pods_not_ready"): "why" for i in range(5000)}
    )
    rendered = shown(snapshot(nftables=replace(NFT, counts=tables), cluster=cluster))
    assert "480 others" in rendered
    assert f"and {5000 - MOST:,} more, which `vipscope doctor` names" in rendered
    assert len(rendered) < 64 << 10


def test_it_leads_to_the_metrics_and_to_the_dashboards_where_these_are_known() -> None:
    without = shown(snapshot(), links=Links("/probe/m", ""))
    assert 'href="/probe/m"' in without
    assert "Dashboards" not in without
    given = shown(snapshot(), links=Links("/metrics", "https://grafana.example/?a=1&b='"))
    assert (
        '<a href="https://grafana.example/?a=1&amp;b=&#x27;" rel="noreferrer">Dashboards' in given
    )


# --- the last hour --------------------------------------------------------------------------------


def hour(*values: int, gap: int = 0) -> list[Sample]:
    """A sample a minute of nftables' endpoint rules, the newest a minute ago."""
    began = NOW - INTERVAL * (len(values) + gap)
    return [
        Sample(
            began + INTERVAL * (index + (gap if index >= len(values) // 2 else 0)),
            {("rules", "nft", "kube-proxy", "endpoint"): value},
        )
        for index, value in enumerate(values)
    ]


def lines(rendered: str) -> list[tuple[str, list[list[tuple[float, float]]]]]:
    """(what a drawing says in words, its lines) of each drawing."""
    return [
        (
            words,
            [
                [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]
                for points in re.findall(r'points="([^"]*)"', drawing)
            ],
        )
        for words, drawing in re.findall(r"<svg.*?<title>(.*?)</title>(.*?)</svg>", rendered)
    ]


def test_a_class_that_grows_is_a_line_that_rises_to_what_is_there_now() -> None:
    ((words, (line,)),) = lines(shown(snapshot(), hour(11, 111, 161)))
    assert words == "last hour: 11 to 211"
    across, heights = [x for x, _ in line], [y for _, y in line]
    assert across == sorted(across)
    assert across[-1] == 120.0
    assert across[0] == pytest.approx(120 * (1 - 3 / LENGTH), abs=0.1)
    assert heights == [22.0, 12.0, 7.0, 2.0]


def test_minutes_that_are_not_known_are_a_gap_and_not_a_line() -> None:
    ((_, found),) = lines(shown(snapshot(), hour(1, 2, 3, 4, gap=5)))
    assert [len(line) for line in found] == [2, 3]
    missing = hour(1, 2, 3, 4)
    missing[1:2] = [Sample(missing[1].at, {})]
    ((_, found),) = lines(shown(snapshot(), missing))
    assert [len(line) for line in found] == [2, 3]
    assert found[0][0] == found[0][1]


def test_samples_of_another_time_are_not_drawn() -> None:
    assert lines(shown(snapshot(), hour(1, 2, 3)))
    old = [Sample(each.at - 2 * LENGTH * INTERVAL, each.numbers) for each in hour(1, 2, 3)]
    ahead = [Sample(each.at + 2 * LENGTH * INTERVAL, each.numbers) for each in hour(1, 2, 3)]
    assert not lines(shown(snapshot(), [*ahead, *old]))


def test_a_clock_that_was_set_back_spoils_no_line() -> None:
    history = History()
    for at in (0, 60, 120, 0, 60, 120, 180):
        history.replaced(snapshot(), NOW - 240 + at)
    ats = [each.at for each in history.samples]
    assert len(ats) > len(set(ats))
    for _, found in lines(shown(snapshot(), history.samples)):
        across = [x for x, _ in found[0]]
        assert across == sorted(across)


def test_the_history_has_each_minutes_last_numbers_and_no_more_than_an_hour() -> None:
    history = History()
    for second in range(0, 7200, 20):
        entries = replace(CONNTRACK, entries=second)
        history.replaced(snapshot(conntrack=entries), NOW + second)
    kept = history.samples
    assert len(kept) == LENGTH
    assert kept[-1].at == NOW + 7200 - 2 * INTERVAL
    assert all(each.numbers[("conntrack",)] == each.at - NOW + INTERVAL for each in kept)
    assert set(kept[0].numbers) == {
        ("rules", "nft", "kube-proxy", "service"),
        ("rules", "nft", "kube-proxy", "endpoint"),
        ("rules", "nft", "other", ""),
        ("depth", "ipv4"),
        ("drift",),
        ("conntrack",),
        ("unroutable",),
    }


# --- rendering ------------------------------------------------------------------------------------


async def test_one_snapshot_is_rendered_once_a_second_however_many_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[float] = []

    def counted(*given: object) -> str:
        rendered.append(float(str(given[2])))
        return "page"

    monkeypatch.setattr(room, "page", counted)
    made, of = Page(LINKS), snapshot()
    for now in (1.0, 1.2, 1.9, 2.0):
        assert await made.render(of, (), now) == "page"
    await made.render(snapshot(), (), 2.0)
    assert rendered == [1.0, 2.0, 2.0]


def large() -> Snapshot:
    """What a snapshot of 205,005 rules holds, and everything that can be wrong by name."""
    counts = {
        (family, table, "kube-proxy", kind): Count(1 + 205_000 // 64, 10)
        for family in ("ipv4", "ipv6")
        for table in ("nat", "filter", "mangle", "raw")
        for kind in ("service", "endpoint", "services", "external", "firewall", "filter", "a", "b")
    }
    ruleset = replace(NFT, counts=counts, depths={"ipv4": tuple(range(5_000))})
    named = tuple(
        Disagreement("missing", "ns", f"svc-{number}", "http", "", 90.0, ())
        for number in range(1_000)
    )
    drift = replace(BROKEN, faults={}, named=named, services={"missing": 5_000, "orphaned": 0})
    cluster = replace(
        CLUSTER, unroutable={("n", f"s{i}", "", "pods_not_ready"): "why" for i in range(5_000)}
    )
    return snapshot(nftables=ruleset, drift=drift, cluster=cluster)


def test_a_large_nodes_page_is_made_in_a_fifth_of_a_second() -> None:
    of, history = large(), hour(*range(LENGTH))
    began = time.thread_time()
    shown(of, history)
    assert time.thread_time() - began < 0.2


# --- hostile names --------------------------------------------------------------------------------


def hostile(name: str) -> Snapshot:
    """A snapshot in which all that strangers name is called so."""
    ruleset = replace(
        NFT,
        counts={("ipv4", name, "other", ""): Count(3, 1), **NFT.counts},
        set_elements={("ipv4", "kube-proxy", name): 3},
        follow=replace(NFT.follow, transactions={name: 5}) if NFT.follow else None,
    )
    drift = replace(
        BROKEN,
        named=(
            Disagreement("missing_endpoints", name, name, name, "", 95.0, (name,)),
            Disagreement("orphaned", "", "", "", name, 12.0, ()),
        ),
    )
    cluster = replace(CLUSTER, unroutable={(name, name, name, "pods_not_ready"): name})
    failed = Reading(Outcome.FAILED, name)
    of = snapshot(nftables=ruleset, drift=drift, cluster=cluster, ipvs=failed)
    return Snapshot(Node(name, name), of.readings)


def test_hostile_names_are_text_and_spoil_no_line() -> None:
    rendered = shown(hostile(HOSTILE + "\x1b[31m\u202e\n"))
    assert "<script" not in rendered
    assert "<img" not in rendered
    assert "\x1b" not in rendered
    assert "\u202e" not in rendered
    assert rendered.count(html.escape(HOSTILE)) > 10


@in_chromium
def test_in_a_browser_hostile_names_are_text_and_no_script_runs() -> None:
    with browser.served(shown(hostile(HOSTILE))) as url:
        document = browser.dom(url)
    assert "<title>vipscope on &lt;script&gt;" in document
    assert not re.search("<(script|img)", document)
    for where in ("<h1>", "<li>", '<th scope="row">', "<td>"):
        assert f"{where}{html.escape(HOSTILE, quote=False)}" in document


@in_chromium
def test_the_canary_of_hostile_names_would_be_seen() -> None:
    with browser.served(f"<title>as it was</title>{HOSTILE}") as url:
        assert "<title>owned</title>" in browser.dom(url)


@in_chromium
def test_on_a_phone_nothing_scrolls_sideways_and_a_large_node_is_shown_at_once() -> None:
    widths = (320, 390, 1200)
    for rendered in (shown(hostile(LONG), hour(1, 2, 3)), shown(large(), hour(*range(LENGTH)))):
        found = browser.measure(rendered, widths)
        assert [each.width for each in found] == list(widths)
        assert max(each.milliseconds for each in found) < 1000


@in_chromium
def test_a_page_that_scrolls_sideways_would_be_seen() -> None:
    (found,) = browser.measure(f"<!doctype html>{LONG}", [320])
    assert found.width > 320


# --- a real node ----------------------------------------------------------------------------------


def broken_and_looked_at() -> str:
    with watched("node1", "iptables"):
        shows("is as the API wants it")
        shell(BREAKS)
        shows(*screenshots.BROKEN)
        return browser.dom(URL)


@in_chromium
@in_namespace
def test_in_a_browser_a_broken_nodes_page_shows_what_is_broken_and_why() -> None:
    with Namespace() as namespace:
        load_iptables(namespace)
        said = text_of(namespace.call(broken_and_looked_at))
    for what in (
        "packets from pods and from outside never reach kube-proxy's rules",
        "43 Service ports cut off for ",
        "ns-0/svc-0:http: 10.64.0.0:8080, for ",
        "43 Service ports missing",
        "kube-proxy: endpoint",
    ):
        assert what in said


@in_namespace
@in_chromium
def test_the_pictures_of_the_documents_can_be_taken_anew(tmp_path: Path) -> None:
    screenshots.take(tmp_path, growth="true", breaks=BREAKS)
    taken = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    assert taken.keys() == {each.name for each in PICTURES.glob("*.png")}
    for picture in taken.values():
        assert picture[12:16] == b"IHDR"
        assert struct.unpack(">II", picture[16:24]) == SIZE


@pytest.mark.parametrize("name", ["page-healthy.png", "page-broken.png"])
def test_the_pictures_of_the_documents_are_there_and_small(name: str) -> None:
    assert f"({name})" in COMMANDS.read_text()
    assert 0 < (PICTURES / name).stat().st_size < 150 << 10


def test_the_policy_lets_the_page_load_and_run_nothing() -> None:
    assert POLICY.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in POLICY
    rendered = shown(large(), hour(1, 2, 3))
    assert " style=" not in rendered
    for loads in ("<script", "src=", "<link", "@import", "url(", "http://", "https://"):
        assert loads not in rendered
