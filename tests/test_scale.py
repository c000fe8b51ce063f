"""docs/scale.md, and the simulation from which its figures come."""

from __future__ import annotations

import re

import pytest

from tests.bench import machine
from tests.bench.scale import report, watch
from tests.bench.scale.history import Kept, needed
from tests.bench.scale.load import Growth, Load
from tests.bench.scale.report import PAGE, Line, Measured, page
from tests.bench.scale.series import Said
from tests.lab.fleet import Node, samples

FIRST = """\
# TYPE a_total counter
a_total 10.0
# TYPE b gauge
b{x="1"} 2.5
b{x="2"} 7.0
# TYPE c histogram
c_bucket{le="1"} 4.0
c_bucket{le="+Inf"} 6.0
c_sum 1.5
"""
SECOND = (
    FIRST.replace("10.0", "14.0").replace("2.5", "3.5").replace(" 4.0", " 5.0")
    .replace(" 6.0", " 8.0").replace("1.5", "1.75")
)  # fmt: skip


def told(number: int, step: float) -> dict[str, float]:
    text = Node.of(FIRST, SECOND).exposition(number, step)
    return {each.series: float(each.value) for each in samples(text)}


def test_a_node_of_the_fleet_says_every_series_of_the_real_one() -> None:
    assert told(0, 3).keys() == {each.series for each in samples(FIRST)}


def test_counters_and_buckets_grow_and_stay_in_order() -> None:
    steps = [told(5, step) for step in range(20)]
    for series in ("a_total", 'c_bucket{le="1"}', 'c_bucket{le="+Inf"}', "c_sum"):
        values = [each[series] for each in steps]
        assert values == sorted(values)
        assert values[0] < values[-1]
    assert all(each['c_bucket{le="1"}'] <= each['c_bucket{le="+Inf"}'] for each in steps)


def test_a_gauge_keeps_to_what_was_seen() -> None:
    assert {told(5, step)['b{x="1"}'] for step in range(50)} == {2.5, 3.5}
    assert {told(5, step)['b{x="2"}'] for step in range(50)} == {7.0}


def test_what_counts_whole_things_stays_whole() -> None:
    assert all(told(7, step / 3)["a_total"].is_integer() for step in range(30))


def test_every_recorded_series_that_is_looked_back_on_has_history() -> None:
    kept = needed()
    assert kept["slo:vipscope_requests:rate1h"] == Kept(30 * 86400, 120)
    assert kept["node:vipscope_latency_seconds:p99"] == Kept(6 * 3600, 15)
    assert all(each.step < 300 for each in kept.values())


@pytest.mark.parametrize(
    ("content", "message", "length"),
    [
        # 0a 04 h t t p   12 03 T C P   18 90 3f
        ({"name": "http", "protocol": "TCP", "port": 8080}, watch.PORT, 6 + 5 + 3),
        ({"ready": True, "serving": False}, watch.CONDITIONS, 4),
        # Conditions are written even when there are none.
        ({"addresses": ["10.0.0.1"]}, watch.ENDPOINT, 10 + 2),
        ({"labels": {"a": "bc"}, "name": "n"}, watch.METADATA, (2 + 3 + 4) + 3 + 7 * 2),
    ],
)
def test_an_object_is_as_long_as_protocol_buffers_make_it(
    content: dict[str, object], message: dict[str, watch.Field], length: int
) -> None:
    assert watch.size(content, message) == length


def test_a_field_that_is_not_known_is_not_left_out() -> None:
    with pytest.raises(KeyError):
        watch.size({"name": "http", "newField": 1}, watch.PORT)


def test_traffic_is_that_of_captured_objects() -> None:
    found = watch.measure()
    assert 20_000 < found.event < 30_000
    assert 0.3 < found.event_protobuf / found.event < 0.6
    assert found.lists == found.list_slices + found.list_services
    assert found.restart(20) == 2 * found.restart(10)


def test_the_page_tells_the_traffic_and_how_it_is_computed() -> None:
    def timeless(text: str) -> str:
        return re.sub(r"[\d.]+ (s|%)", "", text)

    region = report.regions(measured(watch.measure()))["watch"]
    assert timeless(region) in timeless(PAGE.read_text())


def test_a_node_of_the_fleet_has_most_series_as_the_page_says() -> None:
    (row,) = re.findall(r"^\| all \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    iptables, nftables, busy, _ = map(int, row.split("|"))
    assert busy > max(iptables, nftables)


def test_a_line_goes_through_its_points() -> None:
    line = Line.through([(1, 5), (2, 7), (4, 11)])
    assert line.at(10) == pytest.approx(23)


def measured(traffic: watch.Traffic) -> Measured:
    """Of a fleet that never was, with that traffic."""
    said = Said(FIRST, SECOND, {"probe": 5})
    groups = {"vipscope-slo": 60.0, "vipscope-slo-period": 120.0}
    loads = [
        Load(nodes, 500 * nodes, 300 * nodes, 20.0 * nodes, 1e6 * nodes, 0.1, 0.01,
             dict.fromkeys(groups, nodes / 100), groups, 0, nodes)
        for nodes in (10, 15, 20)
    ]  # fmt: skip
    return Measured(
        {"iptables": said, "nftables": said}, said, said, loads, Growth(10, 1.0, 2.0),
        traffic,
    )  # fmt: skip


def test_every_generated_region_of_the_page_is_filled_and_can_be_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "describe", lambda: "a machine")
    text = PAGE.read_text()
    assert not re.search(r"<!-- (\w+) begin -->\n<!-- \1 end -->", text)
    found = measured(watch.measure())
    renewed = page(text, found)
    assert "| 20 | 10,000 | 400 |" in renewed
    assert page(renewed, found) == renewed
