"""An API server of lists and watches, in a process of its own, that misbehaves when told to.

It serves what it is given, the captures by default, and keeps to the protocol: pages with continue
tokens, resource versions, bookmarks, 410 for a version that it has forgotten. `python -m
tests.lab.apiserver --help` serves by hand; tests use `ApiServer`, which can also kill it and start
it again: objects survive that, the history of events does not, as with a real one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.lab.rulesets import Endpoint, Service

CAPTURES = Path(__file__).parents[1] / "captures" / "api"
PATHS: Mapping[str, str] = {
    "services": "/api/v1/services",
    "endpointslices": "/apis/discovery.k8s.io/v1/endpointslices",
    "pods": "/api/v1/pods",
    "nodes": "/api/v1/nodes",
}
"""What is served, by resource."""
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
"""Where Leases are, which alone can be written."""
SLICE_SIZE = 100
"""Endpoints that the controller puts into a slice."""
ZONES = {"node1": "zone-b", "node2": "zone-c", "node3": "zone-a"}

Object = dict[str, Any]
"""An object of the API as it is in JSON."""


def read_capture(name: str) -> bytes:
    """A file of the captures of the API, unpacked."""
    path = CAPTURES / name
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def captured(size: str = "small") -> dict[str, list[Object]]:
    """The captured objects by resource: of the `small` cluster, or those there are of `medium`."""
    names = {"small": "{}.json", "medium": "medium.{}.json.gz"}
    files = {resource: names[size].format(resource) for resource in PATHS}
    return {
        resource: json.loads(read_capture(name))["items"]
        for resource, name in files.items()
        if (CAPTURES / name).exists()
    }


def recorded(resource: str) -> list[Object]:
    """The events of a recorded watch stream."""
    name = {
        "services": "services.watch.jsonl",
        "endpointslices": "endpointslices.watch.jsonl.gz",
    }[resource]
    return [json.loads(line) for line in read_capture(name).splitlines()]


def api_objects(services: Sequence[Service]) -> dict[str, list[Object]]:
    """The API objects of which kube-proxy makes the rulesets of `tests.lab.rulesets`."""
    versions = itertools.count(1000)
    return {
        "services": [_service(each, next(versions)) for each in services],
        "endpointslices": [
            _slice(each, start, next(versions))
            for each in services
            for start in range(0, max(1, len(each.endpoints)), SLICE_SIZE)
        ],
    }


def api_pods(service: Service) -> list[Object]:
    """The Pods behind a Service's endpoints, which its selector matches; all are ready."""
    return [
        {
            "metadata": {
                "name": f"{service.name}-{i}",
                "namespace": service.namespace,
                "uid": _pod_uid(endpoint),
                "labels": {"app": service.name},
            },
            "spec": {"nodeName": endpoint.node, "containers": [{"name": "main"}]},
            "status": {
                "phase": "Running",
                "podIPs": [{"ip": endpoint.address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        for i, endpoint in enumerate(service.endpoints)
    ]


def _pod_uid(endpoint: Endpoint) -> str:
    """A Pod keeps it whatever becomes of its Service."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, endpoint.address))


def _metadata(name: str, namespace: str, version: int) -> Object:
    return {
        "name": name,
        "namespace": namespace,
        "uid": f"00000000-0000-4000-8000-{version:012d}",
        "resourceVersion": str(version),
        "generation": 1,
        "creationTimestamp": "2026-11-23T12:13:43Z",
    }


def _service(service: Service, version: int) -> Object:
    family = "IPv6" if ":" in service.cluster_ip else "IPv4"
    port = {"protocol": service.protocol.upper(), "port": service.port, "targetPort": 8080}
    if service.port_name:
        port["name"] = service.port_name
    return {
        "metadata": _metadata(service.name, service.namespace, version),
        "spec": {
            "ports": [port],
            "selector": {"app": service.name},
            "clusterIP": service.cluster_ip,
            "clusterIPs": [service.cluster_ip],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def _slice(service: Service, start: int, version: int) -> Object:
    endpoints = service.endpoints[start : start + SLICE_SIZE]
    family = "IPv6" if ":" in service.cluster_ip else "IPv4"
    return {
        "metadata": _metadata(f"{service.name}-{start:05x}", service.namespace, version)
        | {
            "generateName": f"{service.name}-",
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service.name,
            },
            "annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "2026-11-23T12:13:43Z"
            },
        },
        "addressType": family,
        "endpoints": [
            {
                "addresses": [endpoint.address],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {
                    "kind": "Pod",
                    "namespace": service.namespace,
                    "name": f"{service.name}-{start + i}",
                    "uid": _pod_uid(endpoint),
                },
                "nodeName": endpoint.node,
                "zone": ZONES.get(endpoint.node, "zone-a"),
            }
            for i, endpoint in enumerate(endpoints)
        ],
        "ports": [
            {
                "name": service.port_name,
                "protocol": service.protocol.upper(),
                "port": endpoints[0].port if endpoints else None,
            }
        ],
    }


# --- the process ---


@dataclass(frozen=True)
class _Event:
    version: int
    kind: str
    object: Object
    old: Object | None


@dataclass
class _Collection:
    """The objects of one resource and what has happened to them."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    history: deque[_Event] = field(default_factory=lambda: deque(maxlen=10_000))
    pages: dict[str, list[Object]] = field(default_factory=dict)
    """What is left of a list that is being paged through, by continue token."""
    watchers: set[asyncio.Queue[_Event | bytes]] = field(default_factory=set)
    """Events, and bytes that are sent as they are."""


class _Server:
    """State and handlers of the process."""

    def __init__(self, state: Path, token: str, bookmark_seconds: float) -> None:
        self.state = state
        self.token = token
        self.bookmark_seconds = bookmark_seconds
        self.faults: list[Object] = []
        self.requests: list[Object] = []
        self.leases: dict[str, Object] = {}
        """By path."""
        self.version = self.oldest = 0
        self.collections: dict[str, _Collection] = {}
        self.load()

    def load(self) -> None:
        """Begin with the objects of the state file."""
        content = json.loads(self.state.read_text())
        self.version = self.oldest = content["version"]
        """Nothing older than `oldest` is remembered."""
        self.collections = {
            resource: _Collection(
                {_key(each): each for each in content["objects"].get(resource, [])}
            )
            for resource in PATHS
        }

    def save(self) -> None:
        content = {
            "version": self.version,
            "objects": {
                resource: list(collection.objects.values())
                for resource, collection in self.collections.items()
            },
        }
        self.state.write_text(json.dumps(content))

    # --- requests ---

    async def answer(self, resource: str, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        if namespace := request.match_info.get("namespace"):
            fields = [f"metadata.namespace={namespace}", query.get("fieldSelector", "")]
            query["fieldSelector"] = ",".join(filter(None, fields))
        verb = "watch" if "watch" in query else "list"
        self.requests.append({"resource": resource, "verb": verb, "query": query})
        if not self._knows(request):
            return _status(401, "Unauthorized", "Unauthorized")
        collection = self.collections[resource]
        fault = self._fault(resource, verb, query)
        if fault in _ANSWERS:
            return await _ANSWERS[fault](request)
        if verb == "list":
            return self._list(collection, query, fault)
        return await self._watch(collection, request, query, fault)

    async def lease(self, request: web.Request) -> web.StreamResponse:
        """A Lease is asked for, made or replaced, the latter only by who knows its version."""
        verb = {"GET": "get", "POST": "create", "PUT": "update"}[request.method]
        self.requests.append({"resource": "leases", "verb": verb, "query": {}})
        if not self._knows(request):
            return _status(401, "Unauthorized", "Unauthorized")
        path, body = request.path, {} if verb == "get" else await request.json()
        if verb == "create":
            path += f"/{body['metadata']['name']}"
        there = self.leases.get(path)
        if there is None and verb != "create":
            return _status(404, "NotFound", "leases not found")
        if there is not None and verb == "create":
            return _status(409, "AlreadyExists", "leases already exists")
        if there is None or verb == "update":
            if there is not None and _version(body) != _version(there):
                return _status(409, "Conflict", "the object has been modified")
            self.version += 1
            metadata = body["metadata"] | {"resourceVersion": str(self.version)}
            there = self.leases[path] = body | {"metadata": metadata}
        return web.json_response(there)

    def _knows(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return not self.token or (scheme.lower(), token) == ("bearer", self.token)

    def _fault(self, resource: str, verb: str, query: Mapping[str, str]) -> str:
        """The name of the fault that this request meets, "" when it is to be served well."""
        for fault in self.faults:
            places = {verb, "page"} if "continue" in query else {verb}
            if fault["times"] and fault["resource"] in (resource, "") and places & {*fault["on"]}:
                fault["times"] -= 1
                return str(fault["name"])
        return ""

    def _list(
        self, collection: _Collection, query: Mapping[str, str], fault: str
    ) -> web.StreamResponse:
        version, token = self.version, query.get("continue", "")
        if token:
            if token not in collection.pages:
                return _status(410, "Expired", "The provided continue parameter is too old")
            left, version = collection.pages[token], int(token.split("/")[0])
        else:
            wanted = int(query.get("resourceVersion") or 0)
            if wanted > version:
                return _status(504, "Timeout", f"Too large resource version: {wanted}")
            left = [each for each in collection.objects.values() if _selects(query, each)]
        limit = int(query.get("limit") or 0) or len(left)
        metadata: Object = {"resourceVersion": str(version)}
        if len(left) > limit:
            # Characters that a query has to quote.
            metadata["continue"] = f"{version}/{len(left)}+=?&%"
            collection.pages[metadata["continue"]] = left[limit:]
        if fault == "endless_list":
            metadata["continue"] = f"{version}/again"
            collection.pages[metadata["continue"]] = []
        items = left[:limit]
        if fault == "incomplete":
            items = [{"metadata": {"namespace": "odd"}}, *items]
        if fault == "behind":
            metadata["resourceVersion"] = "1"
        return web.json_response({"metadata": metadata, "items": items})

    async def _watch(
        self, collection: _Collection, request: web.Request, query: Mapping[str, str], fault: str
    ) -> web.StreamResponse:
        since = int(query["resourceVersion"])
        if since < self.oldest:
            status = f"too old resource version: {since} ({self.oldest})"
            return _status(410, "Expired", status)
        queue: asyncio.Queue[_Event | bytes] = asyncio.Queue()
        for event in collection.history:
            if event.version > since:
                queue.put_nowait(event)
        if fault:
            queue.put_nowait(_LINES[fault])
        collection.watchers.add(queue)
        try:
            async with _streaming(request) as response:
                await self._send(queue, query, response, ends=fault in _LAST_LINES)
            return response
        finally:
            collection.watchers.discard(queue)

    async def _send(
        self,
        queue: asyncio.Queue[_Event | bytes],
        query: Mapping[str, str],
        response: web.StreamResponse,
        *,
        ends: bool,
    ) -> None:
        """Send what the queue holds and gets; with `ends`, only until bytes have been sent."""
        loop = asyncio.get_running_loop()
        end = loop.time() + float(query.get("timeoutSeconds", 1e6))
        while loop.time() < end:
            try:
                async with asyncio.timeout(min(self.bookmark_seconds, end - loop.time())):
                    event = await queue.get()
            except TimeoutError:
                await response.write(_bookmark(self.version))
                continue
            if isinstance(event, bytes):
                await response.write(event)
                if ends:
                    return
            elif (kind := _kind_for(query, event)) is not None:
                await response.write(_line(kind, event.object))

    # --- orders of the test ---

    async def control(self, request: web.Request) -> web.Response:
        order = await request.json()
        result = getattr(self, f"order_{order.pop('order')}")(**order)
        return web.json_response(result)

    def order_push(self, resource: str, kind: str, object_: Object) -> int:
        """Something happened. It gets the next version, unless it brings a newer one along."""
        collection = self.collections[resource]
        metadata = object_["metadata"]
        self.version = max(self.version + 1, int(metadata.get("resourceVersion") or 0))
        object_ = object_ | {"metadata": metadata | {"resourceVersion": str(self.version)}}
        key = _key(object_)
        old = collection.objects.get(key)
        if kind == "DELETED":
            collection.objects.pop(key, None)
        else:
            collection.objects[key] = object_
        event = _Event(self.version, kind, object_, old)
        collection.history.append(event)
        for watcher in collection.watchers:
            watcher.put_nowait(event)
        return self.version

    def order_apply(self, objects: Mapping[str, Sequence[Object]]) -> None:
        """All of these, by resource, come to be, or become as they are given."""
        for resource, found in objects.items():
            known = self.collections[resource].objects
            for each in found:
                kind = "MODIFIED" if _key(each) in known else "ADDED"
                self.order_push(resource, kind, each | {"metadata": _unversioned(each)})

    def order_replay(self, resource: str) -> int:
        """All events of the recorded stream happen, and its bookmarks are sent, at once."""
        for event in recorded(resource):
            if event["type"] == "BOOKMARK":
                self.version = max(self.version, _version(event["object"]))
                self.order_send(resource, (json.dumps(event) + "\n"))
            else:
                self.order_push(resource, event["type"], event["object"])
        return self.version

    def order_flap(self, resource: str, name: str, count: int) -> int:
        """Modify an object `count` times."""
        found = self.collections[resource].objects
        one = next(each for key, each in found.items() if key[1] == name)
        for _ in range(count):
            self.order_push(resource, "MODIFIED", one)
        return self.version

    def order_send(self, resource: str, text: str) -> int:
        """Send watchers a text as it is. Returns how many there are."""
        watchers = self.collections[resource].watchers
        for watcher in watchers:
            watcher.put_nowait(text.encode())
        return len(watchers)

    def order_fault(self, name: str, times: int, resource: str, on: Sequence[str]) -> None:
        """Meet the next requests with a fault; a negative number of times is for ever."""
        self.faults.append({"name": name, "times": times, "resource": resource, "on": on})

    def order_well(self) -> None:
        """No more faults."""
        self.faults.clear()

    def order_forget(self) -> None:
        """Forget history and lists that are being paged through, as after a compaction."""
        self.oldest = self.version
        for collection in self.collections.values():
            collection.history.clear()
            collection.pages.clear()

    def order_advance(self, by: int) -> int:
        """Other resources change."""
        self.version += by
        return self.version

    def order_objects(self, resource: str) -> list[Object]:
        return list(self.collections[resource].objects.values())

    def order_requests(self) -> list[Object]:
        """All requests since the last time, and forget them."""
        requests, self.requests = self.requests, []
        return requests

    def order_watchers(self, resource: str) -> int:
        return len(self.collections[resource].watchers)

    def order_token(self, token: str) -> None:
        """From now on only this token is good."""
        self.token = token

    def order_reset(self, token: str) -> None:
        """Begin anew: with the objects of the state file, without Leases, faults and requests."""
        self.token = token
        self.leases.clear()
        self.faults.clear()
        self.requests.clear()
        self.load()

    def order_save(self) -> None:
        self.save()


# --- what a misbehaving one answers ---


@contextlib.asynccontextmanager
async def _streaming(request: web.Request) -> AsyncIterator[web.StreamResponse]:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    yield response
    await response.write_eof()


async def _gone(_: web.Request) -> web.StreamResponse:
    return _status(410, "Expired", "too old resource version: 1 (800)")


async def _throttled(_: web.Request) -> web.StreamResponse:
    answer = _status(429, "TooManyRequests", "Too many requests, please try again later.")
    answer.headers["Retry-After"] = "7"
    return answer


async def _error(_: web.Request) -> web.StreamResponse:
    return _status(500, "InternalError", "etcdserver: leader changed")


async def _unavailable(_: web.Request) -> web.StreamResponse:
    return web.Response(status=503, text="upstream connect error\nor disconnect/reset")


async def _not_found(_: web.Request) -> web.StreamResponse:
    return _status(404, "NotFound", "the server could not find the requested resource")


async def _empty(_: web.Request) -> web.StreamResponse:
    return web.Response(status=200, content_type="application/json")


async def _plain(_: web.Request) -> web.StreamResponse:
    return web.Response(status=200, text="<html>\nplease log in\n</html>\n")


async def _silent(request: web.Request) -> web.StreamResponse:
    async with _streaming(request) as response:
        await asyncio.sleep(3600)
    return response


async def _mute(_: web.Request) -> web.StreamResponse:
    """Takes the request and does not even answer with a status."""
    await asyncio.sleep(3600)
    raise AssertionError


async def _reset(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _cut(request: web.Request) -> web.StreamResponse:
    """Breaks the connection within the body."""
    async with _streaming(request) as response:
        await response.write(b'{"type":"ADDED","obj')
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
    return response


_ANSWERS: Mapping[str, Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]] = {
    "gone": _gone,
    "throttled": _throttled,
    "error": _error,
    "unavailable": _unavailable,
    "not_found": _not_found,
    "empty": _empty,
    "plain": _plain,
    "silent": _silent,
    "mute": _mute,
    "reset": _reset,
    "cut": _cut,
}
"""Faults that are the whole answer, to a list or a watch."""

_LAST_LINES: Mapping[str, bytes] = {
    "gone_event": (CAPTURES / "watch.expired.jsonl").read_bytes(),
    "error_event": b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"oops"}}\n',
    "half_line": b'{"type":"ADDED","object":{"metadata":{"name":"half","namesp',
    "garbage": b"\xff\xfe{]\n",
    "endless_line": b'{"type":"' + b"x" * (9 << 20),
}
"""Faults that are the last bytes of a watch."""
_LINES: Mapping[str, bytes] = {
    **_LAST_LINES,
    "incomplete": b'{"type":"ADDED","object":{"metadata":{"namespace":"odd"}}}\n'
    b'{"type":"ADDED","object":{"metadata":{"name":5},"spec":[]}}\n'
    b'{"type":"ADDED","object":null}\n'
    b'{"type":"STRANGE","object":{"metadata":{"name":"a"},"spec":{}}}\n',
}
"""Faults that are lines of a watch. The lists' own are `incomplete`, `behind`, `endless_list`."""

MISBEHAVIOURS = {
    "list": sorted([*_ANSWERS, "incomplete", "behind", "endless_list"]),
    "watch": sorted([*_ANSWERS, *_LINES]),
}
"""All faults, by verb."""


def _status(code: int, reason: str, message: str) -> web.Response:
    content = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return web.json_response(content, status=code)


def _key(each: Object) -> tuple[str, str]:
    return each["metadata"].get("namespace", ""), each["metadata"]["name"]


def _unversioned(each: Object) -> Object:
    return {key: value for key, value in each["metadata"].items() if key != "resourceVersion"}


def _version(each: Object) -> int:
    return int(each["metadata"]["resourceVersion"])


def _line(kind: str, each: Object) -> bytes:
    return json.dumps({"type": kind, "object": each}, separators=(",", ":")).encode() + b"\n"


def _bookmark(version: int) -> bytes:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return _line("BOOKMARK", {"kind": "Any", "apiVersion": "v1", "metadata": metadata})


def _selects(query: Mapping[str, str], each: Object) -> bool:
    """Whether an object passes the selectors: `!label`, `label=value`, `metadata.name=value`."""
    metadata = each["metadata"]
    labels = metadata.get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = term.partition("=")
        if name[1:] in labels if term.startswith("!") else labels.get(name) != value:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        name, _, value = term.partition("=")
        if metadata.get(name.removeprefix("metadata.")) != value:
            return False
    return True


def _kind_for(query: Mapping[str, str], event: _Event) -> str | None:
    """What an event is to a watcher with selectors, None when it is nothing."""
    was = event.old is not None and _selects(query, event.old)
    if event.kind == "DELETED":
        return "DELETED" if was or _selects(query, event.object) else None
    if _selects(query, event.object):
        return event.kind if was or event.kind == "ADDED" else "ADDED"
    return "DELETED" if was else None


async def _serve(arguments: argparse.Namespace) -> None:
    server = _Server(arguments.state, arguments.token, arguments.bookmark_seconds)
    application = web.Application(client_max_size=1 << 30)
    for resource, path in PATHS.items():
        application.router.add_get(path, partial(server.answer, resource))
        group, _, plural = path.rpartition("/")
        within = f"{group}/namespaces/{{namespace}}/{plural}"
        application.router.add_get(within, partial(server.answer, resource))
    application.router.add_post(LEASES, server.lease)
    application.router.add_get(f"{LEASES}/{{name}}", server.lease)
    application.router.add_put(f"{LEASES}/{{name}}", server.lease)
    application.router.add_post("/control", server.control)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    context = None
    if arguments.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.certificate, arguments.key)
    site = web.TCPSite(runner, "127.0.0.1", arguments.port, ssl_context=context)
    await site.start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.lab.apiserver", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="JSON: version and objects")
    parser.add_argument("--port", type=int, default=0, help="0: any; it is printed")
    parser.add_argument("--token", default="", help="the bearer token that is asked for")
    parser.add_argument("--bookmark-seconds", type=float, default=60.0)
    parser.add_argument("--certificate", help="PEM; then it speaks TLS")
    parser.add_argument("--key", help="PEM")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


# --- the test's end ---


@dataclass(frozen=True)
class Certificate:
    """Files of a certificate that signs itself, and its key."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Self:
        """A new one for 127.0.0.1."""
        made = cls(directory / "tls.crt", directory / "tls.key")
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
        names = ["-subj", "/CN=lab", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-out", str(made.certificate), "-keyout", str(made.key)]
        subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
        return made


def kubeconfig(directory: Path, url: str, user: Object | None = None, **cluster: Any) -> Path:
    """A kubeconfig for the server at `url`; JSON is YAML."""
    content = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "clusters": [{"name": "lab", "cluster": {"server": url, **cluster}}],
        "users": [{"name": "lab", "user": user or {}}],
    }
    path = directory / "kubeconfig"
    path.write_text(json.dumps(content))
    return path


class ApiServer:
    """The process, as a context manager."""

    def __init__(
        self,
        objects: Mapping[str, Sequence[Object]] | None = None,
        *,
        token: str = "",
        certificate: Certificate | None = None,
        bookmark_seconds: float = 60.0,
    ) -> None:
        self._objects = captured() if objects is None else objects
        self._token = token
        self._certificate = certificate
        self._bookmark_seconds = bookmark_seconds
        self._directory = tempfile.TemporaryDirectory(prefix="apiserver-")
        self._state = Path(self._directory.name, "state.json")
        self._process: subprocess.Popen[str] | None = None
        self._place: socket.socket
        """Bound to the port as long as this lives, so that no one else gets it while the process is
        away; who connects meanwhile is refused. The process binds to it all the same."""
        self.port = 0

    def __enter__(self) -> Self:
        versions = [_version(each) for found in self._objects.values() for each in found]
        content = {"version": max(versions, default=1), "objects": dict(self._objects)}
        self._state.write_text(json.dumps(content))
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._place.close()
        self._directory.cleanup()

    @property
    def url(self) -> str:
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process; after `kill`, with the objects of `save`."""
        command = [sys.executable, "-m", "tests.lab.apiserver", f"--state={self._state}"]
        command += [f"--port={self.port}", f"--bookmark-seconds={self._bookmark_seconds}"]
        if self._token:
            command.append(f"--token={self._token}")
        if self._certificate is not None:
            command.append(f"--certificate={self._certificate.certificate}")
            command.append(f"--key={self._certificate.key}")
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=os.environ | {"PYTHONPATH": f"{root}:{root / 'exporter'}"},
        )
        assert self._process.stdout is not None
        assert int(self._process.stdout.readline()) == self.port

    def kill(self) -> None:
        """End the process at once; connections break."""
        if self._process is not None and self._process.stdout is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def order(self, order: str, **arguments: Any) -> Any:
        """Give an order: see the methods `order_…` of the server."""
        if self._certificate is None:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        else:
            context = ssl.create_default_context(cafile=str(self._certificate.certificate))
            connection = HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        try:
            connection.request("POST", "/control", json.dumps({"order": order, **arguments}))
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{order}: {answer.status} {body.decode()}")
        return json.loads(body)

    def push(self, resource: str, kind: str, object_: Object) -> int:
        """Let something happen. Returns its version."""
        return int(self.order("push", resource=resource, kind=kind, object_=object_))

    def misbehave(self, name: str, *on: str, times: int = 1, resource: str = "") -> None:
        """Answer the next `list`, `watch` or only further `page` of a list badly, so many times."""
        self.order("fault", name=name, times=times, resource=resource, on=on or ("list", "watch"))

    def requests(self) -> Counter[str]:
        """How many lists, watches and further pages were asked for since the last call."""
        made: Iterable[Object] = self.order("requests")
        return Counter("page" if "continue" in each["query"] else each["verb"] for each in made)


if __name__ == "__main__":
    main()
