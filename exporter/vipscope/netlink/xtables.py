"""iptables-legacy tables, as getsockopt gives them: their size at once, their entries as one copy.

A table is one run of entries (`struct ipt_entry`, `struct ip6t_entry`), each with its matches and
its target behind it. The base chains come first; where they begin and end the kernel says
(`struct ipt_getinfo`). A user's chain begins with an entry that holds its name in a target ERROR.
The last entry of a chain is its policy, which is no rule: RETURN for a user's chain. One more ERROR
ends the table. iptables (libiptc) writes tables in this form and reads them so.

Only the layouts of 64-bit kernels are known, as amd64 and arm64 have them. What is read is checked
before use: bytes of another shape raise `BrokenError`.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import enum
import mmap
import os
import platform
import socket
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from vipscope.dataplane.programmed import ProxyRule
from vipscope.dataplane.traffic import CountedRule
from vipscope.netlink.extensions import (
    AFFINITY_MATCH,
    MATCHES_OF_DESTINATION,
    PROTOCOLS,
    TARGET_VERDICTS,
    destination_port,
    is_met,
    protocol_name,
    translation,
)
from vipscope.snapshot import AbsentError, BrokenError, DeniedError, Rule, Verdict

MACHINES: Final = ("x86_64", "aarch64")
"""`uname -m` of those kernels whose layouts are known."""
ATTEMPTS: Final = 5
"""Reads of one table before giving up, when writers change it meanwhile."""


class Option(enum.IntEnum):
    """What may be asked. IP6T_SO_GET_INFO and IP6T_SO_GET_ENTRIES have the same numbers."""

    GET_INFO = 64
    """IPT_SO_GET_INFO"""
    GET_ENTRIES = 65
    """IPT_SO_GET_ENTRIES"""


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between `ip_tables.h` and `ip6_tables.h`. Offsets are in bytes."""

    family: str
    socket_family: int
    level: int
    """SOL_IP or SOL_IPV6."""
    names_file: str
    """Names of the tables that exist, below the root of procfs."""
    addresses: int
    """Length of addresses and masks, with which an entry begins: source, destination, their masks,
    each a quarter."""
    interface_masks: slice
    protocol: slice
    flags: int
    """Offset of the flags (IPT_F_*); the inverting flags are the next byte."""
    goto: int
    """The flag IPT_F_GOTO."""
    offsets: int
    """Offset of target_offset and next_offset, 16 bits each."""
    header: int
    """Length of the entry before its first match."""


LAYOUTS: Final[Mapping[str, Layout]] = {
    layout.family: layout
    for layout in (
        Layout(
            family="ipv4",
            socket_family=socket.AF_INET,
            level=socket.SOL_IP,
            names_file="net/ip_tables_names",
            addresses=16,
            interface_masks=slice(48, 80),
            protocol=slice(80, 82),
            flags=82,
            goto=0x02,
            offsets=88,
            header=112,
        ),
        Layout(
            family="ipv6",
            socket_family=socket.AF_INET6,
            level=socket.IPPROTO_IPV6,
            names_file="net/ip6_tables_names",
            addresses=64,
            interface_masks=slice(96, 128),
            protocol=slice(128, 130),
            flags=131,
            goto=0x04,
            offsets=140,
            header=168,
        ),
    )
}
"""By family: ipv4, ipv6."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_GETINFO = struct.Struct("=32sI5I5III")
_GET_ENTRIES = struct.Struct("=32sI4x")
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_EXTENSION = struct.Struct("=H29sB")
"""Head of `struct xt_entry_match` and `struct xt_entry_target`: size, name, revision."""
_VERDICT = struct.Struct("=i")
_PROTOCOL = struct.Struct("=H")
_COUNTERS = struct.Struct("=QQ")
"""`struct xt_counters`: packets, bytes."""
_INVERTED = 0x10 | 0x40
"""IPT_INV_DSTIP and XT_INV_PROTO, alike in both families."""
_OFFSETS = struct.Struct("=HH")
_ALIGNMENT = 8
"""Of entries, matches and targets."""
_STANDARD_SIZE = 40
"""Bytes of `struct xt_standard_target`: jumps and final verdicts."""
_ERROR_SIZE = 64
"""Bytes of `struct xt_error_target`."""
_ERROR_TARGET = struct.Struct("=2x6s24x30s")
"""The start of its own name, and its chain's name of at most XT_FUNCTION_MAXNAMELEN bytes."""
_ERROR = b"ERROR\0"
"""XT_ERROR_TARGET"""
_VERDICTS: Mapping[int, Verdict] = {
    -1: "drop",  # NF_DROP
    -2: "accept",  # NF_ACCEPT
    -4: "accept",  # NF_QUEUE: when the packet comes back the rest of the table is skipped
    -5: "return",  # XT_RETURN
}
_BASE_POLICIES = (0xFFFFFFFF, 0xFFFFFFFE)
"""NF_DROP and NF_ACCEPT as unsigned words."""
_RETURN = 0xFFFFFFFB
"""XT_RETURN as an unsigned word: the policy of users' chains."""


@dataclass(frozen=True, slots=True)
class Info:
    """A table's `struct ipt_getinfo`."""

    table: str
    base_chains: tuple[tuple[str, int, int], ...]
    """(name, offset of the first entry, offset of the policy entry), by ascending offset."""
    entries: int
    """Rules, policies, and one for each user's chain and for the end of the table."""
    size: int
    """Bytes of all entries."""


def parse_info(answer: bytes) -> Info:
    """The answer to GET_INFO. Raises BrokenError."""
    if len(answer) != _GETINFO.size:
        raise BrokenError(f"ipt_getinfo of {len(answer)} bytes")
    name, valid_hooks, *rest = _GETINFO.unpack(answer)
    starts, policies, (entries, size) = rest[:5], rest[5:10], rest[10:]
    if size % _ALIGNMENT:
        raise BrokenError(f"a table of {size} bytes")
    bases = [
        (hook, starts[bit], policies[bit])
        for bit, hook in enumerate(_HOOKS)
        if valid_hooks & 1 << bit
    ]
    return Info(
        _text(name.partition(b"\0")[0]),
        tuple(sorted(bases, key=lambda base: base[1])),
        entries,
        size,
    )


class Table:
    """A table's entries: how many rules each chain has, and what the rules of a chain say.

    `words` are the entries as native words of 32 bits. Each chain is known to be whole when this is
    made; the matches and targets of its rules are checked when they are asked for. Positions are
    indexes into `words`. Raises BrokenError.
    """

    def __init__(self, layout: Layout, info: Info, words: memoryview) -> None:
        self.info = info
        self._layout = layout
        self._words = words
        self._steps: dict[int, int] = {}
        """Words from an entry to the next, by its two offsets: so these are checked only once."""
        self._names: list[str] = []
        """Of the chains in the table's order: base chains come first."""
        self._starts = array("I")
        """Positions of the same chains' first entries, ascending."""
        self._rules = array("I")
        """Numbers of rules of the same chains."""
        if len(words) * 4 != info.size:
            raise BrokenError(f"{len(words) * 4} bytes of entries where {info.size} were announced")
        try:
            entries = self._find_user_chains(*self._find_base_chains())
        except (IndexError, struct.error):
            raise BrokenError("the last entry is cut off") from None
        if entries != info.entries:
            raise BrokenError(f"{entries} entries where {info.entries} were announced")

    def chains(self) -> Iterator[tuple[str, int]]:
        """(name, number of rules) of each chain, base chains included, in the table's order."""
        return zip(self._names, self._rules, strict=True)

    def rules(self, chain: str) -> list[Rule]:
        """The rules of a chain in order. Raises BrokenError, ValueError for an unknown chain."""
        return [self._rule(*each) for each in self._entries(self._names.index(chain))]

    def proxy_rules(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, list[ProxyRule]]]:
        """(name, where its rules lead) of each chain whose name is wanted. Raises BrokenError."""
        for index, name in enumerate(self._names):
            if wanted(name):
                yield name, [self._proxy_rule(*each) for each in self._entries(index)]

    def counted_rules(
        self, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, list[CountedRule]]]:
        """The same with each rule's packet counter, with which its header ends."""
        at = self._layout.header - _COUNTERS.size
        for index, name in enumerate(self._names):
            if wanted(name):
                rules = []
                for entry, end in self._entries(index):
                    packets, _ = _COUNTERS.unpack_from(entry, at)
                    rules.append(CountedRule(self._proxy_rule(entry, end), 0, packets))
                yield name, rules

    def _entries(self, index: int) -> Iterator[tuple[bytes, int]]:
        """Each entry of a chain's rules, and the byte of the table at which it ends."""
        at = self._starts[index]
        for _ in range(self._rules[index]):
            end = at + self._step(at)
            yield self._words[at:end].tobytes(), end * 4
            at = end

    def _find_base_chains(self) -> tuple[int, int]:
        """Note the base chains; return the position behind them and the number of their entries."""
        at = number = 0
        for name, start, policy in self.info.base_chains:
            first = number
            self._names.append(name)
            self._starts.append(at)
            if start != at * 4:
                raise BrokenError(f"chain {name} begins at byte {start}, not {at * 4}")
            while at * 4 < policy and not self._is_head(at):
                at += self._step(at)
                number += 1
            if at * 4 != policy or not self._is_policy(at, _BASE_POLICIES):
                raise BrokenError(f"chain {name} has no policy at byte {policy}")
            self._rules.append(number - first)
            at += self._step(at)
            number += 1
        return at, number

    def _find_user_chains(self, at: int, number: int) -> int:
        """Note the chains from entry `number` at `at` on; return the number of all entries.

        The loop runs once for each entry, and takes most of the time that the kernel does not.
        """
        if not self._is_head(at):
            raise BrokenError(f"no chain begins at byte {at * 4}")
        words, steps, end = self._words, self._steps, len(self._words)
        names: list[bytes] = []
        starts, rules = self._starts, self._rules
        header, offsets = self._layout.header, self._layout.offsets // 4
        head_shape, head_words = _shape(header, header + _ERROR_SIZE), (header + _ERROR_SIZE) // 4
        policy_shape = _shape(header, header + _STANDARD_SIZE)
        # Seen from the head behind it:
        policy_offsets, policy_verdict = offsets - (header + _STANDARD_SIZE) // 4, -2
        first = 0
        while at < end:
            shape = words[at + offsets]
            if shape == head_shape:  # few other entries have it
                target, name = _ERROR_TARGET.unpack_from(words, at * 4 + header)
                if target == _ERROR:
                    if names:
                        if (
                            number < first
                            or words[at + policy_offsets] != policy_shape
                            or words[at + policy_verdict] != _RETURN
                        ):
                            raise BrokenError(f"chain {_text(names[-1])} has no policy")
                        rules.append(number - first)
                    names.append(name.partition(b"\0")[0])
                    starts.append(at + head_words)
                    first = number + 2  # neither the head nor the policy is a rule
            try:
                at += steps[shape]
            except KeyError:
                at += self._step(at)
            number += 1
        if at != end or starts.pop() != end or names[-1] != b"ERROR":
            raise BrokenError("the table does not end with its ERROR entry")
        # All at once: decoding each by itself takes longer than finding it.
        self._names += _text(b"\0".join(names)).split("\0")[:-1]
        return number

    def _step(self, at: int) -> int:
        """Words from the entry to the next."""
        shape = self._words[at + self._layout.offsets // 4]
        if shape not in self._steps:
            target, following = shape & 0xFFFF, shape >> 16
            if (
                target % _ALIGNMENT
                or following % _ALIGNMENT
                or not self._layout.header <= target <= following - _EXTENSION.size
            ):
                raise BrokenError(
                    f"byte {at * 4}: an entry of {following} bytes with its target at {target}"
                )
            self._steps[shape] = following // 4
        return self._steps[shape]

    def _is_head(self, at: int) -> bool:
        """Whether a user's chain begins with the entry."""
        words, header = self._words, self._layout.header
        shape = words[at + self._layout.offsets // 4]
        target, _ = _ERROR_TARGET.unpack_from(words, at * 4 + header)
        return shape == _shape(header, header + _ERROR_SIZE) and target == _ERROR

    def _is_policy(self, at: int, verdicts: Sequence[int]) -> bool:
        """Whether the entry does nothing but give one of these verdicts."""
        words, header = self._words, self._layout.header
        target = at + header // 4
        return (
            words[at + self._layout.offsets // 4] == _shape(header, header + _STANDARD_SIZE)
            and words[target] == _STANDARD_SIZE  # in the upper half a name of no length
            and words[target + _EXTENSION.size // 4] in verdicts
        )

    def _rule(self, entry: bytes, end: int) -> Rule:
        """Decode an entry that ends at byte `end` of the table."""
        target_offset, _ = _OFFSETS.unpack_from(entry, self._layout.offsets)
        size, name, _ = _EXTENSION.unpack_from(entry, target_offset)
        if target_offset + size != len(entry):
            raise BrokenError(f"a target of {size} bytes where {len(entry) - target_offset} are")
        always = self._is_unconditional(entry) and all(
            is_met(self.info.table, *match)
            for match in _matches(entry[self._layout.header : target_offset])
        )
        if name[0]:
            return Rule(verdict=TARGET_VERDICTS.get(_c_string(name), ""), always=always)
        if size != _STANDARD_SIZE:
            raise BrokenError(f"a standard target of {size} bytes")
        (verdict,) = _VERDICT.unpack_from(entry, target_offset + _EXTENSION.size)
        if verdict == end:
            # What iptables writes for a rule without a target: a jump to the next rule.
            return Rule(always=always)
        if verdict >= 0:
            goto = bool(entry[self._layout.flags] & self._layout.goto)
            return Rule(target=self._chain_at(verdict), goto=goto, always=always)
        if verdict not in _VERDICTS:
            raise BrokenError(f"verdict {verdict}")
        return Rule(verdict=_VERDICTS[verdict], always=always)

    def _proxy_rule(self, entry: bytes, end: int) -> ProxyRule:
        """Decode an entry that ends at byte `end` of the table."""
        layout = self._layout
        target_offset, _ = _OFFSETS.unpack_from(entry, layout.offsets)
        size, name, revision = _EXTENSION.unpack_from(entry, target_offset)
        if target_offset + size != len(entry):
            raise BrokenError(f"a target of {size} bytes where {len(entry) - target_offset} are")
        address = self._destination(entry)
        port, recalled = 0, False
        for match, _, data in _matches(entry[layout.header : target_offset]):
            recalled |= match == AFFINITY_MATCH
            if match in PROTOCOLS.values():
                asked = destination_port(match, data)
                port = asked or 0
                address = None if asked is None else address
            elif match in MATCHES_OF_DESTINATION:
                address = None
        data = entry[target_offset + _EXTENSION.size :]
        target = endpoint = ""
        match _c_string(name):
            case "":
                target = self._led_to(data, end)
            case "DNAT":
                endpoint = translation(layout.socket_family, revision, data)
            case "REJECT":
                target = "REJECT"
        (protocol,) = _PROTOCOL.unpack(entry[layout.protocol])
        return ProxyRule(address, protocol_name(protocol), port, target, endpoint, recalled)

    def _destination(self, entry: bytes) -> str | None:
        """As in `ProxyRule.address`."""
        layout = self._layout
        size = layout.addresses // 4
        mask = entry[3 * size : layout.addresses]
        if entry[layout.flags + 1] & _INVERTED:
            return None
        if not any(mask):
            return ""
        if mask != b"\xff" * size:
            return None
        return socket.inet_ntop(layout.socket_family, entry[size : 2 * size])

    def _led_to(self, data: bytes, end: int) -> str:
        """The chain that a standard target leads to, DROP, or "" for nowhere."""
        if len(data) != _STANDARD_SIZE - _EXTENSION.size:
            raise BrokenError(f"a standard target of {len(data)} bytes")
        (verdict,) = _VERDICT.unpack_from(data)
        if verdict >= 0:
            return "" if verdict == end else self._chain_at(verdict)
        if verdict not in _VERDICTS:
            raise BrokenError(f"verdict {verdict}")
        return "DROP" if _VERDICTS[verdict] == "drop" else ""

    def _is_unconditional(self, entry: bytes) -> bool:
        """Whether it asks for no address, protocol or interface."""
        layout = self._layout
        return not (
            any(entry[: layout.addresses])
            or any(entry[layout.interface_masks])
            or any(entry[layout.protocol])
            or entry[layout.flags] & ~layout.goto
            or entry[layout.flags + 1]
        )

    def _chain_at(self, offset: int) -> str:
        """Name of the chain whose first entry is at this byte."""
        index = bisect.bisect_left(self._starts, offset // 4)
        if index == len(self._starts) or self._starts[index] * 4 != offset:
            raise BrokenError(f"a jump to byte {offset}, where no chain begins")
        return self._names[index]


def _shape(target_offset: int, next_offset: int) -> int:
    """An entry's two offsets as the one word in which they stand."""
    return target_offset | next_offset << 16


def _matches(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(name, revision, data) of the matches that fill `data`."""
    at = 0
    while at < len(data):
        if at + _EXTENSION.size > len(data):
            raise BrokenError("a match is cut off")
        size, name, revision = _EXTENSION.unpack_from(data, at)
        if size < _EXTENSION.size or size % _ALIGNMENT or at + size > len(data):
            raise BrokenError(f"a match of {size} bytes")
        yield _c_string(name), revision, data[at + _EXTENSION.size : at + size]
        at += size


def _c_string(field: bytes) -> str:
    return _text(field.partition(b"\0")[0])


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


class Tables(contextlib.AbstractContextManager["Tables"]):
    """The tables of one family that this network namespace has. Asks for no others.

    The kernel makes a table, and loads modules, when one that it does not have is asked for.
    Raises AbsentError when there is none, DeniedError without NET_ADMIN.
    """

    def __init__(self, layout: Layout, procfs: Path) -> None:
        if platform.machine() not in MACHINES or struct.calcsize("P") != 8:
            known = " and ".join(MACHINES)
            raise BrokenError(
                f"the layout of this machine ({platform.machine()}) is not one of 64-bit {known}"
            )
        self.names = _table_names(procfs / layout.names_file)
        self._layout = layout
        self._socket = socket.socket(layout.socket_family, socket.SOCK_DGRAM)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def info(self, name: str) -> Info:
        """A table's size, at a cost that does not depend on it. Raises BrokenError, OSError."""
        answer = bytearray(_GETINFO.size)
        answer[: len(name)] = name.encode()
        self._get(Option.GET_INFO, name, answer)
        return parse_info(bytes(answer))

    @contextlib.contextmanager
    def table(self, name: str) -> Iterator[Table]:
        """A table's entries, valid within the context: their memory is given back at its end.

        Raises BrokenError, OSError.
        """
        for _ in range(ATTEMPTS):
            info = self.info(name)
            # Private: page faults of shared memory cost more.
            with mmap.mmap(-1, _GET_ENTRIES.size + info.size, flags=_PRIVATE) as memory:
                _GET_ENTRIES.pack_into(memory, 0, name.encode(), info.size)
                try:
                    self._get(Option.GET_ENTRIES, name, memory)
                except BlockingIOError:
                    continue  # EAGAIN: the size has changed
                if self.info(name) != info:
                    continue  # the entries may be of either
                with memoryview(memory)[_GET_ENTRIES.size :].cast("I") as words:
                    yield Table(self._layout, info, words)
                return
        raise BrokenError(f"table {name} changed during each of {ATTEMPTS} reads")

    def _get(self, option: Option, table: str, buffer: bytearray | mmap.mmap) -> None:
        """Call getsockopt with the whole of `buffer`. Raises AbsentError, DeniedError, OSError."""
        if table not in self.names:
            raise AbsentError(f"no table {table}")
        # Only the address is kept: a reference to the buffer would hold up its unmapping.
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        length = ctypes.c_uint32(len(buffer))
        if _LIBC.getsockopt(
            self._socket.fileno(),
            self._layout.level,
            Option(option),
            ctypes.c_void_p(address),
            ctypes.byref(length),
        ):
            number = ctypes.get_errno()
            error = OSError(number, os.strerror(number))
            if isinstance(error, PermissionError):
                raise DeniedError(f"table {table}: {error.strerror}") from None
            raise error


def _table_names(file: Path) -> tuple[str, ...]:
    try:
        names = tuple(file.read_text().split())
    except FileNotFoundError:
        raise AbsentError(f"no {file}") from None
    except PermissionError as error:
        raise DeniedError(f"{file}: {error.strerror}") from None
    if not names:
        raise AbsentError(f"no table in {file}")
    return names
