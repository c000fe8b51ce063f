"""What the chart makes of its values, without a cluster.

`UPDATE_GOLDEN=1 make test ARGS=tests/helm/test_chart.py` writes the golden files anew.
"""

from __future__ import annotations

import copy
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator
from helm_python import Chart

from alerts.sources import SOURCES
from tests.helm.chart import (
    CHART,
    MATRIX,
    NAMESPACE,
    Object,
    Values,
    expand,
    notes,
    one,
    pods,
    render,
)
from tools import chart as generated
from vipscope import __version__, settings

GOLDEN = Path(__file__).parent / "golden"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"

OLDEST, NEWEST = "1.26", "1.37"
"""Versions of Kubernetes whose types are checked: that of the chart's kubeVersion, and the last."""

every = pytest.mark.parametrize("name", MATRIX)


# --- objects --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRIX)
def test_lint_is_clean(name: str) -> None:
    report = helm_python.lint(CHART, MATRIX[name], strict=True, kube_version=f"v{NEWEST}.0")
    said = [each["error"] for each in report["messages"]]
    assert (report["errors"], said) == ([], ["icon is recommended"])


@every
def test_objects_are_those_of_the_golden_file(name: str) -> None:
    objects = [_without_generated(each) for each in render(MATRIX[name])]
    text = yaml.safe_dump_all(objects, sort_keys=False, width=100)
    path = GOLDEN / f"{name}.yaml"
    if UPDATE:
        path.write_text(text)
    assert text == path.read_text(), "if it is meant: UPDATE_GOLDEN=1 make test"


def test_each_golden_file_has_its_values() -> None:
    assert {path.stem for path in GOLDEN.glob("*")} == set(MATRIX)


def _without_generated(each: Object) -> Object:
    """An object with just the names of rule groups, dashboards and files: others test them."""
    each = copy.deepcopy(each)
    if each["kind"] == "PrometheusRule":
        each["spec"]["groups"] = [group["name"] for group in each["spec"]["groups"]]
    component = each["metadata"].get("labels", {}).get("app.kubernetes.io/component")
    if each["kind"] == "ConfigMap" and component in ("rules", "dashboards"):
        each["data"] = dict.fromkeys(each["data"], "...")
    return each


def test_objects_are_of_the_types_of_kubernetes() -> None:
    objects = {json.dumps(each): each for values in MATRIX.values() for each in render(values)}
    for each in objects.values():
        group = each["apiVersion"].partition("/")[0]
        if group == "monitoring.coreos.com":
            model = getattr(prometheus_operator, each["kind"])
            read = model.model_validate(each).model_dump(by_alias=True, exclude_unset=True)
            assert json.loads(json.dumps(read, default=str)) == each, "a field that there is not"
        elif group != "grafana.integreatly.org":
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(each, version, strict=True)


def test_a_wrong_type_is_noticed() -> None:
    wrong = one(render(), "DaemonSet")
    wrong["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostNetworks"):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


@every
def test_rendering_again_or_with_what_changes_over_upgrades_keeps_names_and_selectors(
    name: str,
) -> None:
    values = MATRIX[name]
    assert render(values) == render(values)
    later = {
        **values,
        "image": {"tag": "9.9.9"},
        "commonLabels": {"more": "labels"},
        "podLabels": {"more": "labels"},
        "unprivileged": True,
    }
    before = _selectors(render(values))
    after = _selectors(render(later, revision=7, is_upgrade=True))
    assert before == after
    assert before


def _selectors(objects: list[Object]) -> dict[tuple[str, str], Any]:
    return {
        (each["kind"], each["metadata"]["name"]): each.get("spec", {}).get("selector")
        for each in objects
        if each["kind"] not in ("Secret", "ConfigMap")
    }


@every
def test_selectors_select_the_pods_of_their_part_alone(name: str) -> None:
    objects = render(MATRIX[name])
    labels = {
        each["kind"]: each["spec"]["template"]["metadata"]["labels"]
        for each in objects
        if each["kind"] in ("DaemonSet", "Deployment")
    }
    for each in objects:
        spec = each.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if not selector or each["kind"].endswith("Monitor"):
            continue
        wanted = selector.get("matchLabels", selector).items()
        chosen = {kind for kind, pod in labels.items() if wanted <= pod.items()}
        part = each["metadata"]["labels"]["app.kubernetes.io/component"]
        assert chosen == {"node": {"DaemonSet"}, "cluster": {"Deployment"}}[part]


def node_of(relabelling: Values, component: str) -> str:
    """The label `node` that Prometheus makes for a pod of a role; "" for none."""
    found = {
        "__meta_kubernetes_pod_label_app_kubernetes_io_component": component,
        "__meta_kubernetes_pod_node_name": "node1",
    }
    match = re.fullmatch(
        relabelling["regex"], ";".join(found[label] for label in relabelling["sourceLabels"])
    )
    return match[1] if match else ""


@every
def test_a_monitor_finds_both_roles_and_names_the_node_of_role_node_alone(name: str) -> None:
    objects = render(MATRIX[name])
    for monitor in objects:
        if not monitor["kind"].endswith("Monitor"):
            continue
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [
            each["metadata"]["labels"]["app.kubernetes.io/component"]
            for each in objects
            if each["kind"] == "Service" and wanted <= each["metadata"]["labels"].items()
        ]
        if monitor["kind"] == "ServiceMonitor":
            assert found == ["cluster", "node"]
        spec = monitor["spec"]
        (endpoint,) = spec.get("endpoints") or spec["podMetricsEndpoints"]
        relabelled = {each["targetLabel"]: each for each in endpoint["relabelings"]}
        assert node_of(relabelled["node"], "node") == "node1"
        assert node_of(relabelled["node"], "cluster") == ""
        assert relabelled["job"]["replacement"] == "vipscope"
        assert ("cluster" in relabelled) == bool(MATRIX[name].get("clusterName"))


def test_of_two_monitors_one_is_too_many() -> None:
    both = {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}
    with pytest.raises(
        helm_python.HelmRenderError, match=r"podMonitor\.enabled and serviceMonitor"
    ):
        render(both)


@every
def test_the_command_takes_the_arguments(name: str) -> None:
    for part, spec in pods(render(MATRIX[name])):
        if part == "test":
            continue
        (container,) = spec["containers"]
        arguments = [expand(each, _expanded(MATRIX[name])) for each in container["args"]]
        variables = {each["name"]: each.get("value", "node1") for each in container["env"]}
        read = settings.load(arguments, variables)
        assert read.role == part
        assert read.listen_addresses[0].port == MATRIX[name].get("port", 9908)
        assert read.node_name == "node1" or part == "cluster"
        assert read.lease == ("" if part == "node" else _lease(name))
        if name == "probe" and part == "node":
            assert [(each.name, each.kind) for each in read.probe_targets] == [
                ("vipscope", "tcp"),
                ("web", "http"),
            ]
        if name == "extra":
            assert (read.cpu_budget, read.drift_grace) == (0.01, 20)


def _expanded(values: Values) -> dict[str, str]:
    """What the kubelet knows when it expands arguments: the links of Services, the node's address.

    An IPv6 address, which comes without brackets.
    """
    return {"HOST_IP": "fd00::1"} | {
        f"{each['metadata']['name'].replace('-', '_').upper()}_PORT_{port['port']}_TCP": (
            f"tcp://10.96.0.30:{port['port']}"
        )
        for each in render(values)
        if each["kind"] == "Service" and each["spec"].get("clusterIP") != "None"
        for port in each["spec"]["ports"]
    }


def _lease(name: str) -> str:
    role = one(render(MATRIX[name]), "Deployment")["metadata"]["name"]
    return f"{NAMESPACE}/{role}"


def test_dashboards_are_taken_as_they_are(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "vipscope")
    content = json.dumps({"uid": "vipscope-node", "title": '{{ node }} "quoted" \\d'})
    directory = tmp_path / "vipscope" / "files" / "dashboards"
    shutil.rmtree(directory)
    directory.mkdir()
    for name in ("vipscope-node", "vipscope-fleet"):
        (directory / f"{name}.json").write_text(content + "\n")
    objects = render(MATRIX["dashboards"], from_chart=Chart.load(tmp_path / "vipscope"))
    sidecar = one(objects, "ConfigMap", "vipscope-node")
    assert sidecar["data"] == {"vipscope-node.json": content}
    assert sidecar["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert sidecar["metadata"]["annotations"] == {"grafana_folder": "Network"}
    operator = one(objects, "GrafanaDashboard", "vipscope-fleet")
    assert operator["metadata"]["namespace"] == "grafana"
    assert operator["spec"] == {
        "instanceSelector": {"matchLabels": {"dashboards": "grafana"}},
        "allowCrossNamespaceImport": False,
        "folder": "Network",
        "configMapRef": {"name": "vipscope-fleet", "key": "vipscope-fleet.json"},
    }
    only_sidecar = {"dashboards": {"enabled": True}}
    kinds = {
        each["kind"] for each in render(only_sidecar, from_chart=Chart.load(tmp_path / "vipscope"))
    }
    assert "ConfigMap" in kinds
    assert "GrafanaDashboard" not in kinds


@pytest.mark.parametrize(
    ("ready", "metrics", "exit_status"),
    [(200, 200, 0), (200, 401, 0), (503, 200, 1), (200, 500, 1)],
)
def test_the_test_pod_succeeds_when_all_is_read_and_metrics_are_there_or_guarded(
    ready: int, metrics: int, exit_status: int
) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/readyz": ready, "/metrics": metrics}[self.path])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            assert _ask(server.server_port, "127.0.0.1") == exit_status
            assert _ask(server.server_port, "127.0.0.1", "::1") == 1, "nobody is on ::1"
        finally:
            server.shutdown()


def _ask(port: int, *hosts: str) -> int:
    (pod,) = (spec for part, spec in pods(render()) if part == "test")
    (container,) = pod["containers"]
    program, scheme, _, *_ = container["args"]
    command = [sys.executable, "-c", program, scheme, str(port), *hosts]
    return subprocess.run(command, check=False, capture_output=True).returncode


# --- privileges -----------------------------------------------------------------------------------

NOTHING = {
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
AS_ROOT = {
    **NOTHING,
    "runAsUser": 0,
    "runAsGroup": 0,
    "runAsNonRoot": False,
    "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
}


@every
def test_nothing_has_more_privilege_than_stated(name: str) -> None:
    values = MATRIX[name]
    lock = values.get("xtablesLock", {}).get("enabled", False)
    for part, spec in pods(render(values)):
        assert "securityContext" not in spec
        (container,) = spec["containers"]
        assert not {"initContainers", "ephemeralContainers"} & spec.keys()
        privileged = part == "node" and not values.get("unprivileged")
        assert container["securityContext"] == (AS_ROOT if privileged else NOTHING)
        shared = {key: spec[key] for key in spec if key.startswith("host")}
        on_host = {"hostNetwork": True, **({"hostPID": True} if lock else {})}
        assert shared == (on_host if part == "node" else {})
        paths = [each["hostPath"]["path"] for each in spec.get("volumes", ()) if "hostPath" in each]
        assert paths == (["/run/xtables.lock"] if lock and part == "node" else [])
        assert all(each["readOnly"] for each in container.get("volumeMounts", ()))
        assert spec.get("automountServiceAccountToken", True) == (part != "test")


@every
def test_all_containers_are_bounded(name: str) -> None:
    for _, spec in pods(render(MATRIX[name])):
        (container,) = spec["containers"]
        assert container["resources"]["requests"]["cpu"]
        assert container["resources"]["limits"]["memory"]


def test_the_image_is_the_charts_own_version_unless_told_otherwise() -> None:
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert metadata["appVersion"] == __version__
    for values, image in (
        ({}, f"vipscope/vipscope:{__version__}"),
        ({"image": {"tag": "1.2.3"}}, "vipscope/vipscope:1.2.3"),
        (MATRIX["image"], f"mirror.example/vipscope@sha256:{'0' * 64}"),
    ):
        assert {spec["containers"][0]["image"] for _, spec in pods(render(values))} == {image}


# --- values ---------------------------------------------------------------------------------------

REFUSED: list[tuple[str, Values]] = [
    ("/image/pullPolicy", {"image": {"pullPolicy": "Sometimes"}}),
    ("/image/tag", {"image": {"tag": "latest"}}),
    ("/image/tag", {"image": {"tag": "a b"}}),
    ("/image/digest", {"image": {"digest": "sha256:1234"}}),
    ("/image/repository", {"image": {"repository": "Vip Scope"}}),
    ("/imagePullSecrets/0", {"imagePullSecrets": ["name"]}),
    ("/nameOverride", {"nameOverride": "Scope"}),
    ("/fullnameOverride", {"fullnameOverride": "-x"}),
    (
        "/commonLabels/app.kubernetes.io~1name",
        {"commonLabels": {"app.kubernetes.io/name": "other"}},
    ),
    ("/commonLabels/a", {"commonLabels": {"a": "no label!"}}),
    (
        "/podLabels/app.kubernetes.io~1component",
        {"podLabels": {"app.kubernetes.io/component": "other"}},
    ),
    ("/clusterName", {"clusterName": "a b"}),
    ("/unprivileged", {"unprivileged": "yes"}),
    ("/xtablesLock/enabled", {"xtablesLock": {"enabled": 1}}),
    ("/port", {"port": 80}),
    ("/port", {"port": 70000}),
    ("/log/level", {"log": {"level": "loud"}}),
    ("/log/format", {"log": {"format": "xml"}}),
    ("/extraArgs/0", {"extraArgs": ["role=all"]}),
    ("/env/A", {"env": {"A": {"b": "c"}}}),
    ("/env/VIPSCOPE_ROLE", {"env": {"VIPSCOPE_ROLE": "all"}}),
    ("/env", {"env": {"A B": "c"}}),
    ("/updateStrategy/type", {"updateStrategy": {"type": "Recreate"}}),
    ("/resources/limits/memory", {"resources": {"limits": {"memory": "much"}}}),
    ("/tolerations/0/effect", {"tolerations": [{"effect": "Never"}]}),
    ("/tolerations/0/operator", {"tolerations": [{"operator": "Has"}]}),
    ("/nodeSelector/a", {"nodeSelector": {"a": 1}}),
    ("/serviceAccount/name", {"serviceAccount": {"name": "A"}}),
    ("/cluster/replicas", {"cluster": {"replicas": 0}}),
    ("/cluster/replicas", {"cluster": {"replicas": 11}}),
    ("/cluster/replicas", {"cluster": {"replicas": 1.5}}),
    ("/cluster/updateStrategy/type", {"cluster": {"updateStrategy": {"type": "OnDelete"}}}),
    ("/cluster", {"cluster": {"replica": 2}}),
    ("/rbac/create", {"rbac": {"create": "true"}}),
    ("/probe/targets/0", {"probe": {"targets": ["10.0.0.1:80"]}}),
    ("/service/internalTrafficPolicy", {"service": {"internalTrafficPolicy": "Some"}}),
    ("/webConfig/scheme", {"webConfig": {"scheme": "https"}}),
    ("/webConfig/content", {"webConfig": {"content": "tls: {}"}}),
    ("/networkPolicy/apiServerPorts/0", {"networkPolicy": {"apiServerPorts": [0]}}),
    ("/networkPolicy/apiServerPorts", {"networkPolicy": {"apiServerPorts": []}}),
    ("/podMonitor/interval", {"podMonitor": {"interval": "15"}}),
    ("/serviceMonitor/scrapeTimeout", {"serviceMonitor": {"scrapeTimeout": "soon"}}),
    ("/rules/sources/0", {"rules": {"sources": ["zipkin"]}}),
    ("/rules/sources", {"rules": {"sources": ["istio", "istio"]}}),
    ("/rules/objective", {"rules": {"objective": 1}}),
    ("/rules/objective", {"rules": {"objective": 99}}),
    ("/rules/threshold", {"rules": {"threshold": 0}}),
    ("/rules/job", {"rules": {"job": 'a"b'}}),
    ("/rules/runbooks", {"rules": {"runbooks": "runbooks.md"}}),
    ("/rules/dashboards", {"rules": {"dashboards": "https://a/{{ b }}"}}),
    ("/prometheusRule/rules/0", {"prometheusRule": {"rules": ["up"]}}),
    ("/dashboards/label", {"dashboards": {"label": "-"}}),
    ("/dashboards/labelValue", {"dashboards": {"labelValue": 1}}),
    ("nonsense", {"nonsense": True}),
]


@pytest.mark.parametrize(("path", "values"), REFUSED, ids=[json.dumps(each[1]) for each in REFUSED])
def test_a_wrong_value_is_refused_by_name(path: str, values: Values) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=rf"'{path}'"):
        render(values)


def test_the_schema_knows_each_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    known = {path for path in _schema_paths(schema, schema) if path != "global"}
    assert known == set(_value_paths(values, known))


def _schema_paths(schema: Object, root: Object, path: str = "") -> Iterator[str]:
    if "$ref" in schema:
        schema = root["definitions"][schema["$ref"].rpartition("/")[2]]
    if "patternProperties" in schema or schema.get("additionalProperties") is not False:
        yield path
        return
    for name, each in schema["properties"].items():
        yield from _schema_paths(each, root, f"{path}.{name}".lstrip("."))


def _value_paths(values: Any, known: set[str], path: str = "") -> Iterator[str]:
    if isinstance(values, dict) and path not in known:
        for name, each in values.items():
            yield from _value_paths(each, known, f"{path}.{name}".lstrip("."))
    else:
        yield path


def test_the_readme_describes_each_value() -> None:
    text = (CHART / "values.yaml").read_text()
    assert (CHART / "README.md").read_text() == generated.readme(), "run `make generate`"
    described = {each.path for each in generated.values(text)}
    assert described == set(_value_paths(yaml.safe_load(text), described))


def test_the_schema_lists_the_latency_sources() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    listed = schema["properties"]["rules"]["properties"]["sources"]["items"]["enum"]
    assert listed == [each.name for each in SOURCES]


def test_the_notes_say_what_is_missing() -> None:
    assert "podMonitor.enabled" in notes({})
    assert "prometheusRule.enabled" in notes({})
    assert "NET_ADMIN, so the namespace must allow it" in notes({})
    all_there = notes({"podMonitor": {"enabled": True}, "ruleConfigMap": {"enabled": True}})
    assert not re.search("podMonitor|prometheusRule", all_there)
    assert "nftables, xtables and drift say denied" in notes({"unprivileged": True})
