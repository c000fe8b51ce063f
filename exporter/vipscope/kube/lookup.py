"""One look at a few objects, without a watch."""

from __future__ import annotations

import dataclasses

from vipscope.kube.client import Connection
from vipscope.kube.errors import ApiError, Reason
from vipscope.kube.resources import Resource, T
from vipscope.kube.wire import Decoder

IDLE = 10.0
"""Seconds without a byte of an answer: somebody is waiting for it."""
LIMIT = 256 << 20
"""Bytes of a list."""


def within(
    resource: Resource[T], namespace: str, *, name: str = "", label: str = ""
) -> Resource[T]:
    """Those of a namespace, of this name, with this label (`key=value`).

    Who may read but one namespace may ask so. `namespace` and `name` are valid ones.
    """
    group, _, plural = resource.path.rpartition("/")
    return dataclasses.replace(
        named(resource, name),
        path=f"{group}/namespaces/{namespace}/{plural}",
        label_selector=label,
    )


def named(resource: Resource[T], name: str) -> Resource[T]:
    """Those of a name, all for ""."""
    return dataclasses.replace(resource, field_selector=f"metadata.name={name}" if name else "")


async def find(connection: Connection, resource: Resource[T]) -> tuple[T, ...]:
    """All objects of a resource, as they are now.

    Raises ApiError, also when one of them cannot be decoded: else it would look as if it was gone.
    """
    query = {"labelSelector": resource.label_selector, "fieldSelector": resource.field_selector}
    given = {key: value for key, value in query.items() if value}
    async with connection.get(resource.path, given, idle=IDLE) as response:
        body = await response.read(LIMIT)
    page = Decoder(resource.type).page(body)
    if page.skipped:
        text = f"{page.skipped} of the {resource.name} cannot be decoded"
        raise ApiError(Reason.MALFORMED, text)
    return tuple([item.object for item in page.items])
