"""What the API server sends each node, from objects and watches of a real one.

vipscope takes JSON. kube-proxy, which watches the same, takes Protocol Buffers by default; how long
an object is in these is computed from the API's definitions, for no capture has them.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.bench.scale.series import SERVICES
from tests.lab.apiserver import SLICE_SIZE, Object, captured, recorded

CHANGES_OF_A_POD = 4
"""When a Deployment restarts: one is added, becomes ready, another terminates, is gone."""
GREW = "svc-900-"
"""How the slices are named of the captured Service that grew as fast as it could."""
GZIP_LEVEL = 1
"""The API server's. It compresses lists above 128 KiB for who asks, and never a watch."""


class Traffic(NamedTuple):
    """Bytes, of a node, unless it says otherwise."""

    event: int
    """Of a slice of 100 endpoints, the controller's most."""
    event_protobuf: int
    grown: int
    """Pods of the Service that grew."""
    events_of_a_change: float
    """While it grew: slices' events for each pod."""
    list_slices: int
    """Of SERVICES Services of ten pods."""
    list_slices_protobuf: int
    list_services: int
    gzip_ratio: float
    """Of the list of slices: compressed to plain."""
    gzip_cpu_seconds: float
    """What compressing both lists costs the server, for each node anew."""
    gunzip_cpu_seconds: float

    @property
    def lists(self) -> int:
        """What a node gets when its exporter starts."""
        return self.list_slices + self.list_services

    def restart(self, pods: int) -> float:
        """What a node gets while a Deployment of so many pods restarts, in full slices."""
        return pods * CHANGES_OF_A_POD * self.events_of_a_change * self.event


def measure() -> Traffic:
    """Weigh the captures."""
    medium = captured("medium")
    lists = {name: _items(medium[name]) for name in ("services", "endpointslices")}
    scale = SERVICES / len(medium["services"])
    grown, events, full = _growth(recorded("endpointslices"))
    both = b"".join(lists.values())
    packed, packing = _timed(lambda: gzip.compress(both, GZIP_LEVEL))
    _, unpacking = _timed(lambda: zlib.decompress(packed, wbits=31))
    return Traffic(
        event=len(_json(full)) + 1,
        event_protobuf=_event_protobuf(full),
        grown=grown,
        events_of_a_change=events / grown,
        list_slices=round(len(lists["endpointslices"]) * scale),
        list_slices_protobuf=round(
            sum(_field(2, size(each, SLICE)) for each in medium["endpointslices"]) * scale
        ),
        list_services=round(len(lists["services"]) * scale),
        gzip_ratio=len(packed) / len(both),
        gzip_cpu_seconds=packing * scale,
        gunzip_cpu_seconds=unpacking * scale,
    )


def _growth(events: Sequence[Object]) -> tuple[int, int, Object]:
    """Of the Service that grew: pods, events of its slices, and one of these of a full slice."""
    of = [each for each in events if each["object"]["metadata"].get("name", "").startswith(GREW)]
    last = {each["object"]["metadata"]["name"]: each for each in of}
    pods = sum(len(each["object"]["endpoints"]) for each in last.values())
    full = next(each for each in last.values() if len(each["object"]["endpoints"]) == SLICE_SIZE)
    return pods, len(of), full


def _items(objects: Sequence[Object]) -> bytes:
    return b",".join(map(_json, objects))


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def _timed(function: Any) -> tuple[bytes, float]:
    """The better of three, in CPU seconds."""
    taken = []
    for _ in range(3):
        before = time.process_time()
        result = function()
        taken.append(time.process_time() - before)
    return result, min(taken)


# --- Protocol Buffers -----------------------------------------------------------------------------


class Field(NamedTuple):
    """Of a message of k8s.io/api or apimachinery, as far as slices have them."""

    number: int
    message: Mapping[str, Field] | None = None
    """None: a string, a bool, an int, or a map of strings."""
    always: bool = False
    """Written even when it is empty, as Go's marshaller does with what is no pointer."""


MANAGED: Mapping[str, Field] = {
    "manager": Field(1, always=True), "operation": Field(2, always=True),
    "apiVersion": Field(3, always=True), "time": Field(4), "fieldsType": Field(6, always=True),
    "fieldsV1": Field(7), "subresource": Field(8, always=True),
}  # fmt: skip
OWNER: Mapping[str, Field] = {
    "kind": Field(1, always=True), "name": Field(3, always=True), "uid": Field(4, always=True),
    "apiVersion": Field(5, always=True), "controller": Field(6), "blockOwnerDeletion": Field(7),
}  # fmt: skip
METADATA: Mapping[str, Field] = {
    "name": Field(1, always=True), "generateName": Field(2, always=True),
    "namespace": Field(3, always=True), "selfLink": Field(4, always=True),
    "uid": Field(5, always=True), "resourceVersion": Field(6, always=True),
    "generation": Field(7, always=True), "creationTimestamp": Field(8, always=True),
    "labels": Field(11), "annotations": Field(12), "ownerReferences": Field(13, OWNER),
    "managedFields": Field(17, MANAGED),
}  # fmt: skip
REFERENCE: Mapping[str, Field] = {
    name: Field(number, always=True)
    for number, name in enumerate(
        ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"), 1
    )
}
CONDITIONS = {"ready": Field(1), "serving": Field(2), "terminating": Field(3)}
ZONE = {"name": Field(1, always=True)}
ENDPOINT: Mapping[str, Field] = {
    "addresses": Field(1), "conditions": Field(2, CONDITIONS, always=True), "hostname": Field(3),
    "targetRef": Field(4, REFERENCE), "nodeName": Field(6), "zone": Field(7),
    "hints": Field(8, {"forZones": Field(1, ZONE), "forNodes": Field(2, ZONE)}),
}  # fmt: skip
PORT = {"name": Field(1), "protocol": Field(2), "port": Field(3), "appProtocol": Field(4)}
SLICE: Mapping[str, Field] = {
    "metadata": Field(1, METADATA, always=True), "endpoints": Field(2, ENDPOINT),
    "ports": Field(3, PORT), "addressType": Field(4, always=True),
}  # fmt: skip


def size(content: Mapping[str, Any], message: Mapping[str, Field]) -> int:
    """Bytes of an object, given as its JSON, as such a message. Raises KeyError for a new field."""
    total = sum(
        _field(field.number, 0)
        for name, field in message.items()
        if field.always and name not in content
    )
    for name, value in content.items():
        if value is None or (name in ("kind", "apiVersion") and "metadata" in content):
            continue  # the type of the object itself is beside it, not in it
        field = message[name]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, bool):
                total += _tag(field.number) + 1
            elif isinstance(each, int):
                total += _tag(field.number) + _varint(each)
            elif field.message is not None:
                total += _field(field.number, size(each, field.message))
            elif name == "fieldsV1":
                total += _field(field.number, _field(1, len(_json(each))))
            elif isinstance(each, dict):
                total += sum(_field(field.number, _pair(*pair)) for pair in each.items())
            elif name in ("time", "creationTimestamp"):
                total += _field(field.number, 1 + _varint(1_764_000_000) + 2)
            else:
                total += _field(field.number, len(str(each).encode()))
    return total


def _event_protobuf(event: Object) -> int:
    """A watch's frame: its length, the type, and the object with its own type in an envelope."""
    found = event["object"]
    kind = _field(1, len(found["apiVersion"])) + _field(2, len(found["kind"]))
    envelope = 4 + _field(1, kind) + _field(2, size(found, SLICE)) + 2 + 2
    return 4 + _field(1, len(event["type"])) + _field(2, _field(1, envelope))


def _pair(key: str, value: str) -> int:
    return _field(1, len(key.encode())) + _field(2, len(value.encode()))


def _field(number: int, length: int) -> int:
    return _tag(number) + _varint(length) + length


def _tag(number: int) -> int:
    return _varint(number << 3)


def _varint(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))
