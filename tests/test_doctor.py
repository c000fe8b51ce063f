"""`vipscope doctor` as a process, beside captured rulesets in real kernels and a replayed API."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.dataplane import captured
from tests.diagnosis.test_findings import DRIFT
from tests.lab.apiserver import ApiServer, kubeconfig
from tests.lab.namespace import Namespace, requirements
from tests.stubs import RECORD, Stub, hangs, healthy, stub
from tests.test_cli import ENVIRONMENT
from vipscope import doctor
from vipscope.budget import Budget
from vipscope.diagnosis.unroutable import Reason
from vipscope.doctor import Diagnosis, examine
from vipscope.runner import Runner
from vipscope.snapshot import (
    AbsentError,
    BrokenError,
    Disagreement,
    Drift,
    Node,
    Outcome,
    Reading,
    Record,
    Snapshot,
)

GOLDEN = Path(__file__).parent / "golden" / "doctor.txt"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

FAULTS: Mapping[str, Reason] = {
    "lb-pending": Reason.LOAD_BALANCER_PENDING,
    "named-port-missing": Reason.PORT_NAME_MISMATCH,
    "no-pods": Reason.SELECTOR_MATCHES_NO_PODS,
    "no-selector": Reason.NO_ENDPOINT_SLICES,
    "not-ready": Reason.PODS_NOT_READY,
    "selector-mismatch": Reason.SELECTOR_MATCHES_NO_PODS,
}
"""Services of namespace faults -> why each routes to nobody."""
LOCAL = {"local-only": Reason.NO_LOCAL_ENDPOINTS}
"""That of node1, and of none that has an endpoint of it."""


# --- beside real kernels --------------------------------------------------------------------------


_SYNCED = re.compile(r"^(kubeproxy_sync_proxy_rules_last_timestamp_seconds\S*) \S+$", re.MULTILINE)


class _Answers(BaseHTTPRequestHandler):
    """A healthy kube-proxy's, of both of its ports."""

    mode: str

    def do_GET(self) -> None:
        bodies = {
            "/healthz": b"{}",
            "/proxyMode": self.mode.encode(),
            "/metrics": _SYNCED.sub(
                rf"\1 {time.time()}", captured.read(f"metrics/kube-proxy.{self.mode}.prom")
            ).encode(),
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bodies[self.path])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def kube_proxy(mode: str) -> Iterator[str]:
    """In the present namespace; its address."""
    handler = type("Answers", (_Answers,), {"mode": mode})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Done:
    """A run that has ended."""

    status: int
    output: str
    errors: str
    seconds: float

    @property
    def findings(self) -> list[dict[str, Any]]:
        """Of JSON."""
        found: list[dict[str, Any]] = json.loads(self.output)["findings"]
        return found

    def ids(self, severity: str = "broken") -> list[str]:
        return [each["id"] for each in self.findings if each["severity"] == severity]

    def reasons(self) -> set[tuple[str, str]]:
        """(Service port, reason) of all that is said to be unroutable."""
        return {
            (line.partition(": ")[0], each["id"].removeprefix("unroutable-").replace("-", "_"))
            for each in self.findings
            if each["id"].startswith("unroutable-")
            for line in each["evidence"]
        }


def run(*argv: str) -> Done:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "vipscope", "doctor", *argv],
        env=ENVIRONMENT | {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


Doctor = Callable[..., Done]


def beside(node: str, mode: str, scenario: Callable[..., Any], *steps: tuple[str, ...]) -> Any:
    """In the present namespace: what the scenario makes of the command."""
    with tempfile.TemporaryDirectory() as directory, ApiServer() as server, kube_proxy(mode) as url:
        flags = [
            f"--kubeconfig={kubeconfig(Path(directory), server.url)}",
            f"--node-name={node}",
            "--drift.grace=1",
            f"--kube-proxy.metrics-url={url}",
            f"--kube-proxy.health-url={url}",
        ]
        return scenario(partial(run, *flags), server, *steps)


def shell(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True, capture_output=True)


def looks(doctor: Doctor, _: ApiServer, *steps: tuple[str, ...]) -> list[Done]:
    """Of each step its script first, and then what the command says with the step's flags."""
    done = []
    for script, *flags in steps:
        shell(script)
        done.append(doctor(*flags))
    return done


def in_a_namespace(
    load: Callable[[Namespace], object],
    node: str,
    mode: str,
    scenario: Callable[..., Any],
    *steps: tuple[str, ...],
) -> Any:
    """What the scenario returns, in a namespace with a captured node's ruleset."""
    with Namespace() as namespace:
        load(namespace)
        return namespace.call(beside, node, mode, scenario, *steps)


JSON = ("-o", "json")
CHAIN = "KUBE-SVC-X2WZ2G7EWZYHSNYF"
"""That of ns-0/svc-0."""
AS_THEY_ARE = ("", *JSON)
"""A step that breaks nothing."""


def load_iptables(namespace: Namespace) -> None:
    namespace.restore(captured.read("iptables/small.v4.save"))
    namespace.restore(captured.read("iptables/small.v6.save"), "nft", "ipv6")


def load_nftables(namespace: Namespace) -> None:
    namespace.nft(captured.read("nftables/small.nft"))


def names_these_and_nothing_else(done: Done, reasons: Mapping[str, Reason]) -> None:
    assert done.status == 1
    assert done.reasons() == {(f"faults/{name}:http", why.value) for name, why in reasons.items()}
    assert all(each["id"].startswith("unroutable-") for each in done.findings)
    assert done.ids("warning") == ["unroutable-no-local-endpoints"] * (reasons is not FAULTS)
    assert "waiting" not in done.errors


@in_namespace
def test_in_mode_iptables_it_names_each_faulty_service_and_what_is_broken_besides() -> None:
    script = f"iptables-nft -t nat -F PREROUTING; iptables-nft -t nat -D {CHAIN} 2"
    steps = (AS_THEY_ARE, (script, *JSON), ("",))
    before, after, text = in_a_namespace(load_iptables, "node1", "iptables", looks, *steps)
    names_these_and_nothing_else(before, {**FAULTS, **LOCAL})
    besides = ["drift-prerouting", "drift-missing-endpoints"]
    assert (after.status, after.ids()) == (1, [*besides, *before.ids()])
    (lacking,) = after.findings[1]["evidence"]
    assert lacking.startswith("ns-0/svc-0:http: 10.64.0.0:8080, for ")
    assert after.reasons() == before.reasons()
    assert "waiting 1 s" in after.errors
    assert text.status == 1
    shown = re.sub(r"for \d+ s\b", "for 2 s", text.output)
    if UPDATE:
        GOLDEN.write_text(shown)
    assert shown == GOLDEN.read_text()


@in_namespace
def test_in_mode_nftables_too() -> None:
    steps = (AS_THEY_ARE, ("nft flush chain ip kube-proxy nat-prerouting", *JSON))
    before, after = in_a_namespace(load_nftables, "node2", "nftables", looks, *steps)
    names_these_and_nothing_else(before, FAULTS)
    assert (after.status, after.ids()) == (1, ["drift-prerouting", *before.ids()])


def warnings_alone(doctor: Doctor, server: ApiServer) -> Done:
    for service in server.order("objects", resource="services"):
        if service["metadata"]["name"] in FAULTS:
            server.push("services", "DELETED", service)
    for table in ("nat", "filter"):
        shell(
            f"iptables-nft -t {table} -S | grep -E 'faults/({'|'.join(FAULTS)})' "
            f"| sed 's/^-A/-D/' "
            f"| while read -r rule; do eval iptables-nft -t {table} $rule; done"
        )
    return doctor(*JSON)


@in_namespace
def test_warnings_alone_are_no_failure() -> None:
    done: Done = in_a_namespace(load_iptables, "node1", "iptables", warnings_alone)
    assert done.ids() == []
    assert done.ids("warning") == ["unroutable-no-local-endpoints"]
    assert done.status == 0


# --- the command line -----------------------------------------------------------------------------


def test_wrongly_called_it_says_so_in_one_line() -> None:
    done = run("--no-such-flag")
    assert (done.status, done.output) == (2, "")
    assert done.errors.startswith("vipscope: ")
    assert done.errors.count("\n") == 1


def test_where_nothing_can_be_read_nothing_is_well() -> None:
    done = run("--collector.disable-defaults", "--collector.cluster", "-o", "json")
    assert (done.status, done.ids()) == (1, ["nothing-read"])


# --- when it has seen enough ----------------------------------------------------------------------


def examined(*collectors: Stub, grace: float = 0.2) -> tuple[Snapshot, list[str]]:
    """The snapshot, and what was said meanwhile."""

    async def look() -> Snapshot:
        runner = Runner(Node("node1", "6"), collectors, ("xtables",), Budget(1.0))
        return await examine(runner, grace, said.append)

    said: list[str] = []
    return asyncio.run(look()), said


def drifting(*undecided: bool) -> Stub:
    """A comparison that is so far undecided, read by read, and stays as it is last."""
    answers = list(undecided)

    async def read(_: Stub) -> Record:
        return replace(DRIFT, undecided=answers.pop(0) if len(answers) > 1 else answers[0])

    return stub("drift", read)


def test_it_ends_as_soon_as_all_is_decided() -> None:
    snapshot, said = examined(stub("conntrack", healthy), drifting(True, True, False))
    record = snapshot.readings["drift"].record
    assert isinstance(record, Drift)
    assert not record.undecided
    assert said == [
        "reading conntrack, drift",
        "kernel and API disagree: waiting 0.2 s to see whether that lasts",
    ]


def test_it_does_not_wait_for_ever_for_changes_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "AFTER_GRACE", 0.1)
    began = time.monotonic()
    examined(drifting(True))
    assert 0.3 <= time.monotonic() - began < 2


def test_a_collector_that_could_not_read_has_another_try() -> None:
    async def read(_: Stub) -> Record:
        answers.append(None)
        if len(answers) == 1:
            raise BrokenError("too early")
        return RECORD

    answers: list[None] = []
    snapshot, _ = examined(stub("conntrack", read))
    assert snapshot.readings["conntrack"].outcome is Outcome.OK


def test_what_is_not_there_is_waited_for_only_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(_: Stub) -> Record:
        raise AbsentError("no such thing")

    monkeypatch.setattr(doctor, "SECOND_LOOK", 0.1)
    absent = stub("ipvs", read)
    absent.interval = 3600  # type: ignore[misc]
    began = time.monotonic()
    examined(absent, stub("conntrack", healthy))
    assert time.monotonic() - began < 2


def test_one_that_hangs_is_named_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "IMPATIENCE", 0.1)
    snapshot, said = examined(stub("conntrack", healthy), stub("ipvs", hangs, timeout=0.5))
    assert "still waiting for ipvs" in said
    assert snapshot.readings["ipvs"].outcome is Outcome.TIMEOUT


# --- how it is told -------------------------------------------------------------------------------


def told(**readings: Reading) -> Diagnosis:
    return Diagnosis(Snapshot(Node("node1", "6"), readings), 0.0)


def test_a_healthy_node_is_told_in_one_line() -> None:
    reading = Reading(Outcome.OK, record=replace(RECORD, statistics={}))
    assert told(conntrack=reading).as_text() == (
        "ok: nothing is wrong on node node1, as conntrack showed it\n"
    )


def test_a_hostile_name_stays_on_its_line() -> None:
    reading = Reading(Outcome.FAILED, "a\x1b[2J\nok: nothing is wrong")
    diagnosis = told(conntrack=Reading(Outcome.OK, record=RECORD), drift=reading)
    assert r"a\x1b[2J\nok: nothing is wrong" in diagnosis.as_text()
    assert json.loads(diagnosis.as_json())["findings"][0]["evidence"] == [reading.detail]
    assert diagnosis.as_json().isascii()


def test_people_are_shown_the_first_lines_of_much_evidence_and_programs_all() -> None:
    named = tuple(
        Disagreement("missing", "ns", f"svc-{number}", "", "", 9.0, ()) for number in range(25)
    )
    record = replace(DRIFT, services={"missing": 25, "orphaned": 0}, named=named)
    diagnosis = told(drift=Reading(Outcome.OK, record=record))
    assert diagnosis.is_broken
    lines = diagnosis.as_text().splitlines()
    assert lines[20:22] == ["          ns/svc-19: for 9 s", "          and 5 more"]
    assert lines[22].startswith("        > ")
    content = json.loads(diagnosis.as_json())
    assert content["verdict"] == "broken"
    assert content["collectors"] == {"drift": "ok"}
    assert len(content["findings"][0]["evidence"]) == 25
