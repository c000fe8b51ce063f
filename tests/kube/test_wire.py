"""Decoding of lists and streams: everything that was captured, and whatever bytes may come."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.apiserver import api_objects, captured, read_capture, recorded
from tests.lab.rulesets import cluster
from vipscope.cluster import EndpointSlice, Service
from vipscope.kube.errors import ApiError, Reason
from vipscope.kube.resources import ENDPOINT_SLICES, NODES, PODS, SERVICES, Resource
from vipscope.kube.wire import Decoder, Deleted, Lines, Progress, Written

RESOURCES: dict[str, Resource[Any]] = {
    each.name: each for each in (SERVICES, ENDPOINT_SLICES, PODS, NODES)
}
CAPTURED = [(size, name) for size in ("small", "medium") for name in captured(size)]


def is_part(record: Any, raw: Any) -> bool:
    """Whether a record, as JSON again, says the same as what it was decoded from."""
    if isinstance(record, dict):
        return isinstance(raw, dict) and all(
            is_part(value, raw[name]) for name, value in record.items() if name in raw
        )
    if isinstance(record, list):
        return len(record) == len(raw) and all(map(is_part, record, raw))
    return bool(record == raw)


@pytest.mark.parametrize(("size", "name"), CAPTURED)
def test_every_captured_object_is_decoded_without_loss(size: str, name: str) -> None:
    objects = captured(size)[name]
    suffix = "json" if size == "small" else "json.gz"
    prefix = "" if size == "small" else "medium."
    page = Decoder(RESOURCES[name].type).page(read_capture(f"{prefix}{name}.{suffix}"))
    assert not page.skipped
    assert len(page.items) == len(objects)
    for item, raw in zip(page.items, objects, strict=True):
        assert is_part(json.loads(msgspec.json.encode(item.object)), raw)
        assert item.size == len(json.dumps(raw, separators=(",", ":"), ensure_ascii=False).encode())


@pytest.mark.parametrize("name", ["services", "endpointslices"])
def test_every_recorded_event_is_decoded(name: str) -> None:
    decoder = Decoder(RESOURCES[name].type)
    kinds = {"ADDED": Written, "MODIFIED": Written, "DELETED": Deleted, "BOOKMARK": Progress}
    for raw in recorded(name):
        event = decoder.event(json.dumps(raw).encode())
        assert type(event) is kinds[raw["type"]]
        assert event.version == raw["object"]["metadata"]["resourceVersion"]
        assert not (isinstance(event, Progress) and event.skipped)


def test_the_recorded_410_is_an_expired_version() -> None:
    with pytest.raises(ApiError, match="too old resource version") as caught:
        Decoder(Service).event(read_capture("watch.expired.jsonl"))
    assert caught.value.reason is Reason.EXPIRED


def test_what_endpoints_have_in_common_is_one_object() -> None:
    objects = api_objects(cluster(2, 30))["endpointslices"]
    decode = msgspec.json.Decoder(EndpointSlice).decode
    slices = [decode(json.dumps(each)) for each in objects]
    endpoints = [endpoint for each in slices for endpoint in each.endpoints or ()]
    assert len(endpoints) == 60
    assert len({id(each.node_name) for each in endpoints}) == 3
    assert len({id(each.conditions) for each in endpoints}) == 1


def test_slices_hold_at_most_a_hundred_endpoints() -> None:
    objects = api_objects(cluster(1, 230))["endpointslices"]
    assert [len(each["endpoints"]) for each in objects] == [100, 100, 30]
    assert len({each["metadata"]["name"] for each in objects}) == 3


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"metadata":{}}', b'{"items":[]}'])
def test_what_is_no_list_is_malformed(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        Decoder(Service).page(body)
    assert caught.value.reason is Reason.MALFORMED


def test_a_list_without_items_is_an_empty_one() -> None:
    page = Decoder(Service).page(b'{"metadata":{"resourceVersion":"7"},"items":null}')
    assert (page.version, page.token, page.items, page.skipped) == ("7", "", (), 0)


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 30)))
def test_lines_do_not_depend_on_where_chunks_end(pieces: list[bytes], sizes: list[int]) -> None:
    stream = b"\n".join(pieces)
    lines, found, rest = Lines(), [], stream
    for size in sizes:
        chunk, rest = rest[:size], rest[size:]
        found += lines.feed(chunk)
    found += lines.feed(rest)
    *ended, last = stream.split(b"\n")
    assert found == [line for line in ended if line.strip()]
    assert lines.unfinished == len(last)


@given(st.integers(1, 50), st.lists(st.integers(1, 20), min_size=1))
def test_a_line_of_any_length_is_held_only_up_to_the_limit(limit: int, sizes: list[int]) -> None:
    lines, total = Lines(limit), 0
    for size in sizes:
        total += size
        if total > limit:
            with pytest.raises(ApiError):
                lines.feed(b"x" * size)
            return
        assert not lines.feed(b"x" * size)
    assert lines.feed(b"\n") == [b"x" * total]


EVENTS = [json.dumps(each).encode() for name in ("services",) for each in recorded(name)]


@given(st.sampled_from(EVENTS), st.data())
def test_a_damaged_event_is_an_event_or_an_error_of_the_api(
    line: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    damaged = line[:start] + data.draw(st.binary(max_size=10)) + line[end:]
    decoder = Decoder(Service)
    try:
        event = decoder.event(damaged)
    except ApiError:
        return
    assert isinstance(event, Written | Deleted | Progress)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["metadata", "name", "spec", "code", "items"]), inner)
    ),
    max_leaves=8,
)


@given(st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "X"]), JSON)
def test_an_event_of_any_object_is_never_fatal(kind: str, content: Any) -> None:
    line = json.dumps({"type": kind, "object": content}).encode()
    for resource in RESOURCES.values():
        try:
            event = Decoder(resource.type).event(line)
        except ApiError:
            assert kind == "ERROR"
        else:
            assert kind != "ERROR"
            assert isinstance(event, Written | Deleted | Progress)


@given(st.binary(max_size=100) | JSON.map(lambda each: json.dumps(each).encode()))
def test_a_list_of_anything_is_a_list_or_malformed(body: bytes) -> None:
    try:
        page = Decoder(EndpointSlice).page(body)
    except ApiError:
        return
    assert not page.items
