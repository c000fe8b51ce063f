"""A chain's rules in the kernel's order, kept so by what the kernel tells of each.

When the kernel tells of a new rule, the chain already has all rules of the transaction in their
places, and those that the transaction deletes until it tells of that. The message holds the handle
of the rule before it (its position); a recent kernel leaves this out for the first rule of the
chain and for the last, an old one for the first only. So what is certain is this, and only this is
taken:

- A new rule whose position is the last rule told so far comes behind it.
- A rule without a position which a later one of the same transaction names as its position is the
  first of the chain. Another one without a position is then the last.

That is how a chain is filled after a flush. Anything else does not fit, and the chain has to be
read again. This is exact also where the chain was read later than what is told was committed. Then
each rule that came since is there before it is told of, and each one that went is not there to be
deleted, so neither fits; and if there are none, the chain was the same, for rules change places
only by coming and going.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from vipscope.netlink.nfnetlink import HEADER
from vipscope.netlink.nft_rule import Decoder
from vipscope.snapshot import BrokenError, Rule

_ATTRIBUTE = struct.Struct("=HH").pack
HANDLE = _ATTRIBUTE(12, 3)
"""What stands before a rule's handle in a message: NFTA_RULE_HANDLE with 8 bytes."""
_POSITION = _ATTRIBUTE(12, 6)
_EXPRESSIONS = (_ATTRIBUTE(0, 4)[2:], _ATTRIBUTE(0, 4 | 0x8000)[2:])
"""The type of what comes next where there is no position, without and with the flag for nested."""
_NUMBER = 8
"""Bytes of a handle. It stays as it is in the message: it is only compared."""


class RuleOrder:
    """The rules of one chain. Made empty, then filled with what the kernel answers by `read`."""

    def __init__(self) -> None:
        self._decode = Decoder()
        self._rules: dict[bytes, Rule] = {}
        """Handle -> rule, in the kernel's order."""
        self._headless = b""
        """The last rule that this transaction brought without a position."""
        self._first = b""
        """The rule that is known to be the first of the chain during this transaction."""
        self.fits = True
        """Whether everything told fitted, so that this is what the kernel holds."""

    def __len__(self) -> int:
        return len(self._rules)

    def rules(self) -> Collection[Rule]:
        """The rules, in order."""
        return self._rules.values()

    def read(self, payload: memoryview, at: int) -> None:
        """Take the next rule of the chain, its handle at `at`. Raises BrokenError."""
        if payload[at - len(HANDLE) : at] != HANDLE or len(payload) < at + _NUMBER:
            raise BrokenError("rule without a handle")
        self._rules[bytes(payload[at : at + _NUMBER])] = self._decode(payload)

    def add(self, messages: memoryview, size: int, at: int) -> None:
        """Take new rules, told of in messages of `size` bytes with the handle at `at` in each.

        Raises BrokenError.
        """
        rest = size - at - (_NUMBER + len(_POSITION) + _NUMBER)
        if not self.fits or rest < 0:  # a rule without expressions is shorter
            self.lose()
            return
        rules = self._rules
        last = next(reversed(rules), b"")
        rows = struct.iter_unpack(f"={at}x8s4s8s{rest}x", messages)
        for (handle, header, position), rule in zip(
            rows, self._decode.all(messages, size, HEADER), strict=True
        ):
            if header == _POSITION:
                if position == self._headless:
                    self._first = position
                placed = not last or position == last
            else:
                self._headless = handle
                placed = header[2:] in _EXPRESSIONS and (not last or self._first in rules)
            if not placed or handle in rules:
                self.lose()
                return
            rules[handle] = rule
            last = handle

    def delete(self, messages: memoryview, size: int, at: int) -> None:
        """Take note of rules that are gone, told of as in `add`."""
        self.commit()
        rest = size - at - _NUMBER
        if rest < 0:
            raise BrokenError(f"notification of a rule in {size} bytes")
        for (handle,) in struct.iter_unpack(f"={at}x8s{rest}x", messages):
            if self._rules.pop(handle, None) is None:
                self.lose()
                return

    def commit(self) -> None:
        """Take note of the end of a transaction: what is known of the next one is nothing."""
        self._headless = self._first = b""

    def lose(self) -> None:
        """Take note that something does not fit: the chain has to be read again."""
        self._rules.clear()
        self.fits = False
