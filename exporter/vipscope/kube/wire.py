"""From the bytes of lists and watch streams to records. Pure.

A list is one JSON object with `items`; a watch stream is one JSON object a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

import msgspec

from vipscope.cluster import ObjectMeta
from vipscope.kube.errors import ApiError, Reason
from vipscope.kube.resources import T

LINE_LIMIT = 8 << 20
"""Bytes of a line. The API server takes no object of more than 3 MiB."""


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """An object of a list."""

    object: T
    size: int
    """Bytes of its JSON."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A list, or a page of one."""

    version: str
    """resourceVersion of the whole list."""
    token: str
    """What to ask the next page with, "" after the last."""
    items: tuple[Item[T], ...]
    skipped: int
    """Objects that could not be decoded."""


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """An object was added or modified, or a watch from the beginning tells that it is there."""

    object: T
    version: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """An object is gone."""

    metadata: ObjectMeta
    version: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Nothing changed up to this version: a bookmark, or an object that could not be decoded."""

    version: str
    """May be "" when not even that could be decoded."""
    skipped: bool


Event = Written[T] | Deleted | Progress


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str
    token: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None


class _Typed(msgspec.Struct, Generic[T]):
    """The common event."""

    type: str
    object: T


class _Untyped(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Identity(msgspec.Struct):
    metadata: ObjectMeta


class _VersionMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Version(msgspec.Struct):
    metadata: _VersionMeta


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class Decoder(Generic[T]):
    """Decodes lists and events of one type. Safe to use in several threads at once."""

    def __init__(self, kind: type[T]) -> None:
        event: Any = _Typed
        self._event = msgspec.json.Decoder[_Typed[T]](event[kind])
        self._object = msgspec.json.Decoder(kind)
        self._list = msgspec.json.Decoder(_List)
        self._untyped = msgspec.json.Decoder(_Untyped)

    def page(self, body: bytes | bytearray) -> Page[T]:
        """A list's body. Raises ApiError when it is no list; bad objects in it are skipped."""
        try:
            page = self._list.decode(body)
        except ValueError as error:
            raise ApiError(Reason.MALFORMED, f"not a list: {error}") from None
        items = []
        raws = page.items or []
        for raw in raws:
            try:
                items.append(Item(self._object.decode(raw), len(memoryview(raw))))
            except ValueError:  # skipped
                continue
        return Page(
            page.metadata.resource_version,
            page.metadata.token,
            tuple(items),
            len(raws) - len(items),
        )

    def event(self, line: bytes) -> Event[T]:
        """A line of a watch stream.

        Raises ApiError when it is no event, or one of type ERROR.
        """
        try:
            typed = self._event.decode(line)
        except ValueError:  # a rarer one, or a bad one
            return self._rare_event(line)
        version = typed.object.metadata.resource_version
        match typed.type:
            case "ADDED" | "MODIFIED":
                return Written(typed.object, version)
            case "DELETED":
                return Deleted(typed.object.metadata, version)
            case _:
                return self._rare_event(line)

    def _rare_event(self, line: bytes) -> Event[T]:
        try:
            event = self._untyped.decode(line)
        except ValueError as error:
            raise ApiError(Reason.MALFORMED, f"not an event: {error}") from None
        match event.type:
            case "BOOKMARK":
                return Progress(_version(event.object), skipped=False)
            case "ERROR":
                raise _error(event.object)
            case "DELETED":  # who is gone can be told even if what it was cannot
                try:
                    metadata = msgspec.json.decode(event.object, type=_Identity).metadata
                except ValueError:
                    return Progress(_version(event.object), skipped=True)
                return Deleted(metadata, metadata.resource_version)
            case _:
                return Progress(_version(event.object), skipped=True)


def _version(raw: msgspec.Raw) -> str:
    """The resourceVersion of an object, "" when it has none."""
    try:
        return msgspec.json.decode(raw, type=_Version).metadata.resource_version
    except ValueError:
        return ""


def _error(raw: msgspec.Raw) -> ApiError:
    """What the Status of an ERROR event means."""
    try:
        status = msgspec.json.decode(raw, type=_Status)
    except ValueError:
        status = _Status()
    reason = Reason.EXPIRED if status.code == 410 else Reason.ERROR_EVENT
    return ApiError(reason, f"ERROR event: {status.code} {status.message}", status=status.code)


class Lines:
    """Cuts a stream into lines, wherever its chunks end."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` ends, without line ends; empty ones are left out.

        Raises ApiError when a line has more than `limit` bytes.
        """
        *ended, rest = chunk.split(b"\n")
        if ended:
            ended[0] = b"".join((*self._parts, ended[0]))
            self._parts, self._size = [], 0
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > self._limit or any(len(line) > self._limit for line in ended):
            raise ApiError(Reason.MALFORMED, f"a line has more than {self._limit} bytes")
        return [line for line in ended if line.strip()]

    @property
    def unfinished(self) -> int:
        """Bytes since the last line end."""
        return self._size
