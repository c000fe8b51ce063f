"""A rendered workload as a container that can be started here."""

from __future__ import annotations

from pathlib import Path

from tests.helm.chart import NAMESPACE, Object, expand
from tests.lab.apiserver import ApiServer, Certificate
from tests.lab.container import Container
from tests.lab.image import Image

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
TOKEN = "a-token"
SECRETS = "secrets/kubernetes.io/serviceaccount"
"""Below /run: where a pod finds its service account."""


def container_of(
    workload: Object, image: Image, server: ApiServer, certificate: Certificate
) -> Container:
    """The container of a rendered workload as a kubelet on node1 would make it."""
    spec = workload["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    context = container["securityContext"]
    fields = {"spec.nodeName": "node1", "status.hostIP": "127.0.0.1"}
    own = {
        each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        if "valueFrom" in each
        else each["value"]
        for each in container.get("env", ())
    }
    variables = {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(server.port),
        **own,
    }
    if spec["enableServiceLinks"]:
        # There are no rules for the chart's own Service here: its VIP is the node itself.
        variables["VIPSCOPE_NODE_PORT_9908_TCP"] = "tcp://127.0.0.1:9908"
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["readOnlyRootFilesystem"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "command" not in container, "the image's entrypoint"
    paths = {each["name"]: each["hostPath"]["path"] for each in spec.get("volumes", ())}
    return Container(
        root=str(image.root),
        command=[*image.entrypoint, *(expand(each, variables) for each in container["args"])],
        environment={**image.environment, **variables},
        user=context["runAsUser"],
        group=context["runAsGroup"],
        capabilities=context["capabilities"].get("add", []),
        no_new_privileges=not context["allowPrivilegeEscalation"],
        host_pid=spec.get("hostPID", False),
        files={
            f"{SECRETS}/token": TOKEN,
            f"{SECRETS}/ca.crt": certificate.certificate.read_text(),
            f"{SECRETS}/namespace": NAMESPACE,
        },
        mounts={
            each["mountPath"].removeprefix("/run/"): paths[each["name"]]
            for each in container.get("volumeMounts", ())
        },
    )
