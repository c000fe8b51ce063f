"""What a rule of nf_tables does with a new connection's first packet.

A rule is a list of expressions. The last one says where the packet goes; the ones before it are
conditions, loads into registers, or side effects. This decoder knows which conditions every first
packet of a new connection meets; any other makes the rule conditional.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from vipscope.netlink.extensions import STATE_NEW, TARGET_VERDICTS, is_met
from vipscope.netlink.nfnetlink import ATTRIBUTE_TYPE, attributes, number, text
from vipscope.snapshot import BrokenError, Rule, Verdict

_TABLE, _EXPRESSIONS = 1, 4  # NFTA_RULE_*

_NF_DROP, _NF_ACCEPT = 0, 1
_JUMP, _GOTO, _RETURN = -3, -4, -5
_JUMP_CODES = {socket.ntohl(code & 0xFFFFFFFF): code for code in (_JUMP, _GOTO)}
"""As they stand in a message, which is in network byte order."""
_VERDICTS: dict[int, Verdict] = {_NF_DROP: "drop", _NF_ACCEPT: "accept", _RETURN: "return"}

_HARMLESS = frozenset((b"counter", b"immediate", b"log", b"objref", b"notrack", b"numgen"))
"""Expressions that neither stop a packet nor load anything that a condition could ask for."""
_LOADS = frozenset((b"payload", b"meta"))
"""Expressions that load what nothing is known of, or set a mark."""
_COMPARISONS = frozenset((b"cmp", b"bitwise", b"range"))
_ENDINGS: dict[bytes, Verdict] = {
    b"reject": "drop",
    b"nat": "accept",
    b"masq": "accept",
    b"redir": "accept",
    b"tproxy": "accept",
}
"""Statements that end the base chain for the packet."""
_NOT_EQUAL = 1  # NFT_CMP_NEQ
_CT_STATE = 0  # NFT_CT_STATE

_LENGTH_TYPE = struct.Struct("=HH").unpack_from

# An `immediate` with the verdict jump or goto, as tens of thousands of rules end: the expression's
# header and name, its data's header, the register, three nested headers, the code, the chain's
# header.
_JUMP_EXPRESSION = struct.Struct("=HH16sHHHHIHHHHHHIHH")
_IMMEDIATE_NAME = struct.pack("=HH12s", 14, 1, b"immediate")


class Decoder:
    """Decodes the rules of a chain; the thousands of one shape in KUBE-SERVICES at little cost.

    The shape is learned from a rule that was decoded attribute by attribute: a conditional jump. A
    rule with the same bytes, but for those that cannot change what it does with a packet (numbers
    of handles and counters, compared values, the comment), is such a jump, to its own chain.
    """

    def __init__(self) -> None:
        self._shapes: dict[int, _Shape] = {}

    def __call__(self, payload: memoryview) -> Rule:
        """A rule message's attributes -> Rule. Raises BrokenError."""
        (rule,) = self.all(payload, len(payload), 0)
        return rule

    def all(self, messages: memoryview, size: int, start: int) -> list[Rule]:
        """Messages of `size` bytes, attributes from `start` on -> a Rule for each.

        Raises BrokenError.
        """
        shape = self._shapes.get(size - start)
        if shape is not None:
            alike = [*struct.iter_unpack(f"={start}x{shape.alike}", messages)]
            if alike.count(shape.values) == len(alike):
                target = start + shape.target
                names = struct.iter_unpack(f"={target}x{size - target}s", messages)
                return [_conditional_jump(name) for (name,) in names]
        ends = range(size, len(messages) + 1, size)
        return [self._learn(messages[end - size + start : end]) for end in ends]

    def _learn(self, payload: memoryview) -> Rule:
        rule = decode(payload)
        if rule.target and rule == Rule(rule.target):
            shape = _shape(payload)
            if shape is not None and text(payload[shape.target :]) == rule.target:
                self._shapes[len(payload)] = shape
        return rule


@lru_cache(1 << 14)
def _conditional_jump(chain: bytes) -> Rule:
    """A jump to a chain, named as in a message. Most are decoded again and again."""
    return Rule(text(memoryview(chain)))


class _Shape(NamedTuple):
    alike: str
    """What is the same in all rules of the shape, as a format of struct."""
    values: tuple[bytes, ...]
    """That."""
    target: int
    """Where the name of the chain begins that the rule jumps to. It ends where the rule does."""


_HANDLE, _POSITION = 3, 6  # NFTA_RULE_*
_CMP_DATA, _COUNTER_BYTES, _COUNTER_PACKETS, _MATCH_INFO = 3, 1, 2, 3
_VARIABLE = {b"cmp": (_CMP_DATA,), b"counter": (_COUNTER_BYTES, _COUNTER_PACKETS)}
"""Attributes in which the expressions of two rules of one shape may differ."""


def _shape(payload: memoryview) -> _Shape | None:
    """The shape of a conditional jump, if its conditions are such that only their presence counts.

    A comparison stays one whatever it compares with, unless it is with the connection's state. In
    the kernel's usual layout the chain's name is the last thing in the last expression, and that
    the last one in the rule.
    """
    mask = bytearray(b"\1" * len(payload))
    target = len(payload)
    for kind, start, end in _spans(payload):
        if kind in (_HANDLE, _POSITION):
            mask[start:end] = bytes(end - start)
        elif kind == _EXPRESSIONS:
            for _, first, last in _spans(payload[start:end]):
                packed = payload[start + first - 4 : start + last]
                name, _ = _expression(packed)
                if name == b"ct":
                    return None
                for begin, stop in _variable(name, packed):
                    at = start + first - 4
                    mask[at + begin : at + stop] = bytes(stop - begin)
                target = start + first - 4 + _JUMP_EXPRESSION.size
    mask[target:] = bytes(max(0, len(payload) - target))
    alike = "".join(f"{len([*run])}{'s' if same else 'x'}" for same, run in groupby(mask))
    return _Shape(alike, struct.unpack(alike, payload), target)


def _variable(name: bytes, packed: memoryview) -> Iterator[tuple[int, int]]:
    """(start, end) in an expression of what another of the same shape may have otherwise."""
    which = _VARIABLE.get(name, ())
    nested = 4 if name == b"cmp" else 0  # the header around a value
    for kind, start, end in _spans(packed[4:]):
        if kind == 2:
            data = packed[4 + start : 4 + end]
            if name == b"match" and _string(data, 1) == "comment":
                which = (_MATCH_INFO,)
            for part, begin, stop in _spans(data):
                if part in which:
                    yield 4 + start + begin + nested, 4 + start + stop


def decode(payload: memoryview) -> Rule:
    """A rule message's attributes -> Rule. Raises BrokenError."""
    table, expressions = "", payload[:0]
    for kind, start, end in _spans(payload):
        if kind == _TABLE:
            table = text(payload[start:end])
        elif kind == _EXPRESSIONS:
            expressions = payload[start:end]
            break
    # Most expressions are never looked into: a rule of KUBE-SERVICES shows in its second of nine
    # that it is conditional, and in its last where it leads.
    spans = _spans(expressions)
    if not spans:
        return Rule(always=True)
    always = _always_met(table, (expressions[start - 4 : end] for _, start, end in spans))
    last = expressions[spans[-1][1] - 4 : spans[-1][2]]
    if len(last) >= _JUMP_EXPRESSION.size:
        rule = _jump(last, always)
        if rule is not None:
            return rule
    name, data = _expression(last)
    if name == b"immediate":
        return _immediate(data, always)
    if name == b"lookup":
        return Rule(always=False, lookup=_verdict_map(data))
    if name == b"target":
        return Rule(always=always, verdict=TARGET_VERDICTS.get(_string(data, 1), ""))
    return Rule(always=always, verdict=_ENDINGS.get(name, ""))


def _spans(data: memoryview) -> list[tuple[int, int, int]]:
    """(type, start, end) of each attribute's payload: `attributes` without making them."""
    spans, offset, end = [], 0, len(data)
    while offset + 4 <= end:
        length, kind = _LENGTH_TYPE(data, offset)
        if length < 4 or offset + length > end:
            raise BrokenError(f"attribute of {length} bytes where {end - offset} are left")
        spans.append((kind & ATTRIBUTE_TYPE, offset + 4, offset + length))
        offset += (length + 3) & ~3
    return spans


def _jump(packed: memoryview, always: bool) -> Rule | None:
    """The rule that ends in this expression if it is a jump in the kernel's usual layout."""
    (
        _,
        _,
        name,
        _,
        kind,
        *register,
        _,
        data,
        _,
        verdict,
        _,
        code_kind,
        code,
        length,
        chain_kind,
    ) = _JUMP_EXPRESSION.unpack_from(packed)
    usual = (
        name == _IMMEDIATE_NAME
        and (kind & ATTRIBUTE_TYPE, data & ATTRIBUTE_TYPE, verdict & ATTRIBUTE_TYPE) == (2, 2, 2)
        and register == [8, 1, 0]
        and code_kind == 1
        and chain_kind == 2
        and 4 < length <= len(packed) - _JUMP_EXPRESSION.size + 4
        and code in _JUMP_CODES
    )
    if not usual:
        return None
    start = _JUMP_EXPRESSION.size
    return Rule(
        target=text(packed[start : start + length - 4]),
        goto=_JUMP_CODES[code] == _GOTO,
        always=always,
    )


def _expression(packed: memoryview) -> tuple[bytes, memoryview]:
    """(name, data) of an expression."""
    name, data = b"", packed[:0]
    for kind, value in attributes(packed[4:]):
        if kind == 1:
            name = bytes(value).rstrip(b"\0")
        elif kind == 2:
            data = value
    return name, data


def _string(data: memoryview, wanted: int) -> str:
    return next((text(value) for kind, value in attributes(data) if kind == wanted), "")


def _immediate(data: memoryview, always: bool) -> Rule:
    code, chain = None, ""
    for kind, value in attributes(data):
        if kind == 2:  # NFTA_IMMEDIATE_DATA
            for inner, verdict in attributes(value):
                if inner == 2:  # NFTA_DATA_VERDICT
                    for part, each in attributes(verdict):
                        if part == 1:
                            code = int.from_bytes(each, "big", signed=True)
                        elif part == 2:
                            chain = text(each)
    if code in (_JUMP, _GOTO):
        return Rule(target=chain, goto=code == _GOTO, always=always)
    return Rule(always=always, verdict=_VERDICTS.get(code, "") if code is not None else "")


def _verdict_map(data: memoryview) -> str:
    """The map's name if the look-up's answer is a verdict, else ""."""
    name, register = "", None
    for kind, value in attributes(data):
        if kind == 1:
            name = text(value)
        elif kind == 3:
            register = number(value)
    return name if register == 0 else ""


def _always_met(table: str, expressions: Iterable[memoryview]) -> bool:
    """Whether every first packet of a new connection meets all conditions."""
    state_in: set[int] = set()  # registers that hold the connection's state, NEW
    for packed in expressions:
        if len(packed) < 8:
            raise BrokenError("expression without a name")
        length, _ = _LENGTH_TYPE(packed, 4)
        name = bytes(packed[8 : 4 + length]).rstrip(b"\0")
        if name in _HARMLESS or name in _ENDINGS or name == b"target":
            continue
        if not state_in and name in _LOADS:
            continue
        if not state_in and name in _COMPARISONS:
            return False
        _, data = _expression(packed)
        values = {kind: bytes(value) for kind, value in attributes(data)}
        if not _met(table, name, values, state_in):
            return False
    return True


def _met(table: str, name: bytes, values: dict[int, bytes], state_in: set[int]) -> bool:
    """Whether every such packet passes one expression. Keeps `state_in` up to date."""
    first, second = _number(values, 1), _number(values, 2)
    match name:
        case b"match":
            match = text(memoryview(values.get(1, b"")))
            return is_met(table, match, _number(values, 2), values.get(3, b""))
        case b"cmp":
            return first in state_in and second == _NOT_EQUAL and not any(_data(values, 3))
        case b"bitwise":  # source register, target register
            if first in state_in and _keeps_new(values):
                state_in.add(second)
                return True
            return False
        case b"ct" if second == _CT_STATE and 1 in values:
            state_in.add(first)
            return True
        case b"meta" if 3 in values:
            return True  # sets a mark
        case b"payload" | b"meta" if 1 in values:
            state_in.discard(first)
            return True
        case _:
            return False


def _number(values: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(values.get(kind, b""), "big")


def _data(values: dict[int, bytes], kind: int) -> bytes:
    """The bytes of a nested NFTA_DATA_VALUE."""
    inner = memoryview(values.get(kind, b""))
    return next((bytes(value) for which, value in attributes(inner) if which == 1), b"")


def _keeps_new(values: dict[int, bytes]) -> bool:
    """A mask that lets the bit for NEW through, and nothing that toggles bits."""
    mask = int.from_bytes(_data(values, 4), "little")
    return bool(mask & STATE_NEW) and not any(_data(values, 5))
