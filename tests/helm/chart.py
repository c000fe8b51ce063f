"""The chart as tests see it: value sets, and the objects that it makes of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

CHART = Path(__file__).parents[2] / "helm" / "vipscope"
RELEASE, NAMESPACE = "vipscope", "monitoring"

Values = dict[str, Any]
Object = dict[str, Any]

TLS: Values = {"cert_file": "/certs/tls.crt", "key_file": "/certs/tls.key"}
EXTRA: Values = {
    "extraArgs": ["--cpu-budget=1"],
    "env": {"VIPSCOPE_DRIFT_GRACE": 20},
    "podAnnotations": {"example.com/team": "network"},
    "podLabels": {"team": "network"},
    "priorityClassName": "high",
    "nodeSelector": {"kubernetes.io/arch": "arm64"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {}},
    "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "1Gi"}},
    "extraVolumes": [{"name": "certs", "secret": {"secretName": "certs"}}],
    "extraVolumeMounts": [{"name": "certs", "mountPath": "/certs", "readOnly": True}],
}
"""What either role takes for itself."""

MATRIX: Mapping[str, Values] = {
    "default": {},
    "unprivileged": {"unprivileged": True},
    "xtables-lock": {"xtablesLock": {"enabled": True}},
    "node-only": {"cluster": {"enabled": False}},
    "one-replica": {"cluster": {"replicas": 1, "podDisruptionBudget": {"enabled": False}}},
    "pod-monitor": {
        "podMonitor": {
            "enabled": True,
            "additionalLabels": {"release": "prometheus"},
            "relabelings": [{"targetLabel": "region", "replacement": "eu"}],
            "metricRelabelings": [{"action": "labeldrop", "regex": "instance"}],
        },
        "clusterName": "production",
    },
    "service-monitor": {
        "serviceMonitor": {"enabled": True, "interval": "30s", "endpoint": {"honorLabels": True}},
    },
    "rules": {
        "prometheusRule": {
            "enabled": True,
            "additionalLabels": {"release": "prometheus"},
            "rules": [{"record": "up:sum", "expr": "sum(up)"}],
        },
        "ruleConfigMap": {"enabled": True, "labels": {"prometheus": "rules"}},
    },
    "dashboards": {
        "dashboards": {
            "enabled": True,
            "annotations": {"grafana_folder": "Network"},
            "namespace": "grafana",
            "grafanaDashboards": {"enabled": True, "folder": "Network"},
        },
    },
    "network-policy": {
        "networkPolicy": {
            "enabled": True,
            "from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "apiServerPorts": [6443],
        },
    },
    "web-config": {
        "webConfig": {"content": {"tls_server_config": TLS, "kubernetes_token_review": {}}},
        "podMonitor": {"enabled": True, "endpoint": {"tlsConfig": {"insecureSkipVerify": True}}},
    },
    "web-config-of-another": {
        "webConfig": {"existingSecret": "mine", "scheme": "HTTPS"},
        "rbac": {"reviewTokens": True},
    },
    "client-certificates": {
        "webConfig": {
            "content": {
                "tls_server_config": {**TLS, "client_auth_type": "RequireAndVerifyClientCert"},
            },
        },
    },
    "no-rbac": {
        "rbac": {"create": False},
        "serviceAccount": {"create": False},
        "cluster": {"serviceAccount": {"create": False, "name": "other"}},
    },
    "image": {
        "image": {
            "registry": "mirror.example",
            "repository": "vipscope",
            "digest": f"sha256:{'0' * 64}",
        },
        "imagePullSecrets": [{"name": "registry"}],
    },
    "extra": {**EXTRA, "cluster": EXTRA, "updateStrategy": {"type": "OnDelete"}},
    "probe": {
        "probe": {"enabled": True, "targets": ["web=http://10.96.0.20:80/,direct=10.0.1.7:8080"]},
        "service": {"internalTrafficPolicy": "Cluster"},
        "port": 9909,
    },
    "names": {
        "nameOverride": "scope",
        "fullnameOverride": "kernel-scope",
        "commonLabels": {"team": "network"},
        "log": {"level": "debug", "format": "json"},
    },
}
"""Value sets by name. Together they turn every switch."""


@functools.cache
def chart() -> Chart:
    return Chart.load(CHART)


def render(
    values: Values | None = None, *, from_chart: Chart | None = None, **options: Any
) -> list[Object]:
    """The objects, in the order of the chart's files. Raises what helm_python does.

    Not to be called in a forked child, as by Namespace.call: there Helm, which is Go, hangs.
    """
    rendered = (from_chart or chart()).render(
        values or {}, name=RELEASE, namespace=NAMESPACE, **options
    )
    return [
        each
        for path, text in sorted(rendered.items())
        if path.endswith(".yaml")
        for each in yaml.safe_load_all(text)
        if each
    ]


def notes(values: Values) -> str:
    """What `helm install` prints."""
    rendered = chart().render(values, name=RELEASE, namespace=NAMESPACE)
    return next(text for path, text in rendered.items() if path.endswith("NOTES.txt"))


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    """The one object of a kind, and of a name where one is given."""
    found = [
        each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"])
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """(component, spec) of each pod that the objects make."""
    for each in objects:
        template = each if each["kind"] == "Pod" else each.get("spec", {}).get("template")
        if template:
            component = template["metadata"]["labels"]["app.kubernetes.io/component"]
            yield component, template["spec"]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` as the kubelet expands it: a name that is not known stays as it is."""
    return re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1], match[0]), text)
