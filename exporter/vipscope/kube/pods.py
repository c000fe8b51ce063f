"""Pods, as much of them as explains why a Service routes to nobody.

A cluster has many more Pods than Services, and most of what the API tells of one is of no use here.
Without it 65,000 of them take a third of the memory.
"""

from __future__ import annotations

import sys
from typing import Final

from msgspec.structs import force_setattr

from vipscope.cluster import Container, Pod, PodCondition
from vipscope.kube.resources import PODS, Resource

_READY: Final = "Ready"
_CONDITIONS: dict[PodCondition, tuple[PodCondition]] = {}
"""One of each kind: there are 3."""


class LeanPod(Pod, frozen=True):
    """A Pod without annotations, conditions but Ready, and containers without named ports."""

    def __post_init__(self) -> None:
        """Forget what is not needed, and share what many Pods have in common."""
        intern, metadata, spec, status = sys.intern, self.metadata, self.spec, self.status
        force_setattr(metadata, "annotations", None)
        force_setattr(metadata, "creation_timestamp", None)
        force_setattr(metadata, "namespace", intern(metadata.namespace))
        labels = {intern(key): intern(value) for key, value in (metadata.labels or {}).items()}
        force_setattr(metadata, "labels", labels)
        force_setattr(spec, "node_name", intern(spec.node_name))
        force_setattr(spec, "containers", _with_named_ports(spec.containers))
        force_setattr(spec, "init_containers", _with_named_ports(spec.init_containers))
        conditions: tuple[PodCondition, ...] = ()
        for each in status.conditions:
            if each.type == _READY:
                conditions = _CONDITIONS.setdefault(each, (each,))
        force_setattr(status, "conditions", conditions)


LEAN_PODS: Final[Resource[Pod]] = Resource(PODS.name, PODS.path, LeanPod)
"""All Pods."""


def _with_named_ports(containers: tuple[Container, ...]) -> tuple[Container, ...]:
    return tuple([one for one in containers if any(port.name for port in one.ports)])
