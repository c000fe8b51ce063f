"""The image that the Dockerfile makes, started exactly as the chart's workloads start it.

What the rendered objects say of a container is done without a runtime: see tests/lab/container.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helm.chart import CHART, Object, one, render
from tests.helm.workload import DOCKERFILE, TOKEN, container_of
from tests.lab.apiserver import LEASES, PATHS, ApiServer, Certificate, captured
from tests.lab.container import CAPABILITIES
from tests.lab.image import Image, build
from tests.lab.namespace import Namespace, requirements
from vipscope import metrics as m

TESTS = Path(__file__).parents[1]
CAPTURES = TESTS / "captures" / "iptables"

PATIENCE = 30.0
"""Seconds until all is as it is expected."""

LEGACY = "*filter\n-A INPUT -s 192.0.2.1 -j DROP\nCOMMIT\n"

pytestmark = [
    pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements())),
    pytest.mark.timeout(900),  # the image is built with packages that are downloaded
]


@dataclass(frozen=True)
class Seen:
    """What a container was, and said once it was as expected or time was up."""

    states: dict[str, str]
    """Collector -> its state."""
    metrics: str
    ready: int
    """HTTP status of /readyz."""
    process: dict[str, str]
    """/proc/PID/status."""
    writable: list[str]
    """Mount points that are not read-only."""
    requests: set[tuple[str, str, str]]
    """(API group, resource, verb)."""
    exit_status: int
    """After SIGTERM."""
    asked: str
    """What the chart's test pod says of it."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    with build(DOCKERFILE, tmp_path_factory.mktemp("image")) as built:
        yield built


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    """A node's network with the rules of kube-proxy and some of iptables-legacy."""
    with Namespace() as made:
        made.restore((CAPTURES / "small.v4.save").read_text())
        made.restore((CAPTURES / "small.v6.save").read_text(), family="ipv6")
        made.restore(LEGACY, "legacy")
        yield made


def see(
    workload: Object, image: Image, certificate: Certificate, expected: dict[str, str], verbs: int
) -> Seen:
    """Run a workload's container until its collectors are as expected and it has made requests of
    so many kinds. To be called in the network namespace."""
    with ApiServer(captured(), token=TOKEN, certificate=certificate) as server:
        container = container_of(workload, image, server, certificate)
        requests: set[tuple[str, str, str]] = set()
        with container.start() as (parent, pid):
            states, text = _wait(server, requests, expected, verbs)
            process = Path("/proc", str(pid))
            mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
            status = re.findall(
                r"^(\w+):[ \t]*(.*)$", (process / "status").read_text(), re.MULTILINE
            )
            ready = urllib.request.urlopen("http://127.0.0.1:9908/readyz").status
            command = [image.root / "opt/vipscope/bin/python", CHART / "files" / "ask.py"]
            asked = subprocess.run(
                [*command, "http", "9908", "127.0.0.1"], capture_output=True, text=True, check=True
            )
            parent.terminate()
            exit_status = parent.wait(30)
    return Seen(
        states=states,
        metrics=text,
        ready=ready,
        process=dict(status),
        writable=[each[4] for each in mounts if not each[5].startswith("ro")],
        requests=requests,
        exit_status=exit_status,
        asked=asked.stdout,
    )


def _wait(
    server: ApiServer, requests: set[tuple[str, str, str]], expected: dict[str, str], verbs: int
) -> tuple[dict[str, str], str]:
    """Collector -> state, and /metrics, once all is as expected or time is up."""
    deadline = time.monotonic() + PATIENCE
    states: dict[str, str] = {}
    text = ""
    while time.monotonic() < deadline:
        requests |= {_kind(each) for each in server.order("requests")}
        try:
            text = urllib.request.urlopen("http://127.0.0.1:9908/metrics").read().decode()
        except urllib.error.URLError:
            time.sleep(0.1)
            continue
        found = re.findall(
            rf'^{m.COLLECTOR_STATE}{{collector="(\w+)",state="(\w+)"}} 1', text, re.MULTILINE
        )
        states = dict(found)
        if expected.items() <= states.items() and len(requests) >= verbs:
            break
        time.sleep(0.2)
    return states, text


def _kind(request: Object) -> tuple[str, str, str]:
    path = {**PATHS, "leases": LEASES}[request["resource"]]
    group = "" if path.startswith("/api/") else path.split("/")[2]
    return group, request["resource"], request["verb"]


def rules_of(objects: list[Object], name: str) -> set[tuple[str, str, str]]:
    """(API group, resource, verb) that a part's roles allow."""
    return {
        (group, resource, verb)
        for each in objects
        if each["kind"] in ("ClusterRole", "Role") and each["metadata"]["name"] == name
        for rule in each["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def confined(seen: Seen, user: int, *capabilities: str) -> None:
    """Assert that the process is what its security context says."""
    mask = sum(1 << CAPABILITIES[each] for each in capabilities)
    for kind in ("CapBnd", "CapPrm", "CapEff"):
        allowed = mask if kind == "CapBnd" or user == 0 else 0
        assert int(seen.process[kind], 16) == allowed, kind
    assert seen.process["Uid"].split() == [str(user)] * 4
    assert seen.process["Gid"].split() == [str(user)] * 4
    assert seen.process["Groups"].split() == []
    assert seen.process["NoNewPrivs"] == "1"
    assert seen.process["Seccomp"] == "2"
    assert seen.writable == []
    assert seen.ready == 200
    assert seen.exit_status == 0
    assert re.search(r"/readyz 200\n.*/metrics 200\n", seen.asked)


def test_the_image_holds_what_is_pinned_and_vipscope(image: Image) -> None:
    pinned = re.findall(
        r"^([\w.-]+)==", (DOCKERFILE.parent / "requirements" / "run.txt").read_text(), re.MULTILINE
    )
    found = image.root.glob("opt/vipscope/lib/python*/site-packages/*.dist-info")
    names = {each.name.split("-")[0].replace("_", "-").lower() for each in found}
    assert names == {each.replace(".", "-").lower() for each in pinned} | {"vipscope"}
    assert not list(image.root.glob("opt/vipscope/bin/pip*"))
    path = ":".join(f"{image.root}{each}" for each in image.environment["PATH"].split(":"))
    assert shutil.which("vipscope", path=path), "for kubectl exec"


NODE = {
    "nftables": "ok",
    "xtables": "ok",
    "conntrack": "ok",
    "pressure": "ok",
    "kubeproxy": "ok",
    "drift": "ok",
    "probe": "ok",
    "cluster": "disabled",
}


def test_as_the_daemon_set_starts_it_all_of_the_node_is_exported(
    image: Image, certificate: Certificate, namespace: Namespace
) -> None:
    objects = render()
    workload = one(objects, "DaemonSet")
    seen = namespace.call(see, workload, image, certificate, NODE, 6)
    assert NODE.items() <= seen.states.items()
    confined(seen, 0, "NET_ADMIN")
    assert seen.process["NSpid"].split()[-1] == "1"
    for line in (
        m.RULES.select(backend="nft", owner="kube-proxy", family="ipv6", table="nat"),
        m.RULES.select(backend="legacy", table="filter"),
        m.CONNTRACK_ENTRIES.select(),
        m.DRIFT_SERVICES.select(kind="missing") + " 0",
        m.NODE_INFO.select(nodename="node1"),
    ):
        assert _has(seen.metrics, line), line
    assert f'{m.PROBE_DURATION}_count{{path="vip",probe="vipscope"}}' in seen.metrics
    # Another process's locks are not in a process table of one's own.
    assert str(m.LOCK_HELD) not in seen.metrics
    assert seen.requests == rules_of(objects, "vipscope-node")


def test_with_the_hosts_process_table_the_lock_is_seen_too(
    image: Image, certificate: Certificate, namespace: Namespace
) -> None:
    workload = one(render({"xtablesLock": {"enabled": True}}), "DaemonSet")
    Path("/run/xtables.lock").touch()  # the kubelet: FileOrCreate
    seen = namespace.call(see, workload, image, certificate, NODE, 6)
    assert NODE.items() <= seen.states.items()
    confined(seen, 0, "NET_ADMIN")
    assert f"{m.LOCK_HELD} " in seen.metrics


def test_unprivileged_what_procfs_shows_is_exported_and_the_rest_said_to_be_denied(
    image: Image, certificate: Certificate, namespace: Namespace
) -> None:
    expected = {
        **NODE,
        **dict.fromkeys(("nftables", "xtables", "drift"), "denied"),
    }
    workload = one(render({"unprivileged": True}), "DaemonSet")
    seen = namespace.call(see, workload, image, certificate, expected, 0)
    assert expected.items() <= seen.states.items()
    confined(seen, 65532)
    assert _has(seen.metrics, m.CONNTRACK_ENTRIES.select())
    assert f"{m.RULES}{{" not in seen.metrics


def test_as_the_deployment_starts_it_the_cluster_is_exported(
    image: Image, certificate: Certificate, namespace: Namespace
) -> None:
    objects = render()
    workload = one(objects, "Deployment")
    expected = {"cluster": "ok", "nftables": "disabled"}
    seen = namespace.call(see, workload, image, certificate, expected, 9)
    assert expected.items() <= seen.states.items()
    confined(seen, 65532)
    assert _has(seen.metrics, m.SERVICES.select(type="ClusterIP"))
    assert seen.requests == rules_of(objects, "vipscope-cluster")


def _has(text: str, selected: str) -> bool:
    """Whether there is a sample of a selector, and of the value behind it."""
    name, _, rest = selected.partition("{")
    labels, _, value = rest.partition("}")
    return any(
        line.startswith((name + "{", name + " "))
        and all(each in line for each in filter(None, labels.split(",")))
        and (not value or float(line.split()[-1]) == float(value))
        for line in text.splitlines()
    )
