"""iptables-legacy tables as the kernel gives them, and blobs that it would not give."""

from __future__ import annotations

import functools
import os
import re
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab import counts, rulesets
from tests.lab.namespace import Family, Namespace, requirements
from vipscope.netlink import xtables
from vipscope.netlink.xtables import LAYOUTS, Info, Layout, Option, Table, Tables, parse_info
from vipscope.snapshot import AbsentError, BrokenError, DeniedError, Rule

PROCFS = Path("/proc")
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
ADDRESS = {"ipv4": "10.0.0.1", "ipv6": "fd00::1"}

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as fresh:
        yield fresh


def chains(family: Family, table: str) -> list[tuple[str, int]]:
    with Tables(LAYOUTS[family], PROCFS) as tables, tables.table(table) as read:
        return list(read.chains())


def rules(family: Family, table: str, chain: str) -> list[Rule]:
    with Tables(LAYOUTS[family], PROCFS) as tables, tables.table(table) as read:
        return read.rules(chain)


def entries(family: Family, table: str) -> tuple[Info, bytes]:
    with Tables(LAYOUTS[family], PROCFS) as tables, tables.table(table) as read:
        return read.info, read._words.tobytes()


def names(family: Family) -> str:
    return (PROCFS / LAYOUTS[family].names_file).read_text()


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- what tables hold ----------------------------------------------------------------------------


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
def test_chains_come_with_as_many_rules_as_iptables_save_shows(
    namespace: Namespace, family: Family
) -> None:
    ruleset = rulesets.iptables(rulesets.cluster(20, 3, family=family), family=family)
    namespace.restore(ruleset, "legacy", family)
    saved = counts.iptables_save(namespace.save("legacy", family))
    for table in ("mangle", "filter", "nat"):
        assert dict(namespace.call(chains, family, table)) == saved[table]


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_without_rules_has_its_base_chains_only(
    namespace: Namespace, family: Family
) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy", family)
    expected = [("INPUT", 0), ("FORWARD", 0), ("OUTPUT", 0)]
    assert namespace.call(chains, family, "filter") == expected


@in_namespace
def test_empty_chains_count_as_chains_without_rules(namespace: Namespace) -> None:
    namespace.restore("*filter\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]\n-A B\nCOMMIT\n", "legacy")
    found = dict(namespace.call(chains, "ipv4", "filter"))
    assert (found["A"], found["B"], found["C"]) == (0, 1, 0)


@in_namespace
@pytest.mark.parametrize("comment", ["ERROR", "@\\000ERROR", "x" * 255])
def test_a_rule_whose_comment_looks_like_the_head_of_a_chain_is_a_rule(
    namespace: Namespace, comment: str
) -> None:
    rule = f'-A ERROR -m comment --comment "{comment}" -j RETURN\n'
    namespace.restore(f"*filter\n:ERROR - [0:0]\n{rule * 3}COMMIT\n", "legacy")
    assert dict(namespace.call(chains, "ipv4", "filter"))["ERROR"] == 3
    assert namespace.call(rules, "ipv4", "filter", "ERROR") == [RETURN] * 3


@in_namespace
def test_a_rule_of_the_size_of_a_chain_s_head_is_a_rule(namespace: Namespace) -> None:
    # Targets without data or with little of it: entries of 144 to 176 bytes.
    lines = ["-j TRACE", "-j NFQUEUE --queue-num 1", "-j LOG", "-j CONNMARK --set-mark 1", "-j CT"]
    text = "\n".join(f"-A X {line}" for line in lines)
    namespace.restore(
        f"*raw\n:X - [0:0]\n{text}\nCOMMIT\n".replace("-j CT", "-j NOTRACK"), "legacy"
    )
    _, blob = namespace.call(entries, "ipv4", "raw")
    sizes = [size for size, *_ in reference_entries(LAYOUTS["ipv4"], blob)]
    assert sizes.count(176) > 2  # X, the end, and a rule at least
    assert dict(namespace.call(chains, "ipv4", "raw"))["X"] == 5


@in_namespace
def test_names_that_are_no_utf_8_are_shown_escaped(namespace: Namespace) -> None:
    namespace.run("iptables-legacy-restore", stdin=b"*filter\n:caf\xe9 - [0:0]\nCOMMIT\n")
    assert ("caf\\xe9", 0) in namespace.call(chains, "ipv4", "filter")


# --- what rules say ------------------------------------------------------------------------------

RETURN = Rule(verdict="return", always=True)


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-j T", Rule(target="T", always=True)),
        ("-g T", Rule(target="T", goto=True, always=True)),
        ('-m comment --comment "to T" -j T', Rule(target="T", always=True)),
        ("-j ACCEPT", Rule(verdict="accept", always=True)),
        ("-j DROP", Rule(verdict="drop", always=True)),
        ("-j RETURN", RETURN),
        ("-j NFQUEUE --queue-num 1", Rule(verdict="accept", always=True)),
        ("-j MARK --set-mark 1", Rule(always=True)),
        ("", Rule(always=True)),
        ("-s ADDRESS -j T", Rule(target="T")),
        ("! -d ADDRESS -j T", Rule(target="T")),
        ("-d ADDRESS -g T", Rule(target="T", goto=True)),
        ("-i eth0 -j T", Rule(target="T")),
        ("-p tcp -j T", Rule(target="T")),
        ("-m mark --mark 1 -j T", Rule(target="T")),
        ("-m conntrack --ctstate NEW -j T", Rule(target="T", always=True)),
        ("-m conntrack --ctstate NEW,ESTABLISHED -j T", Rule(target="T", always=True)),
        ("-m conntrack --ctstate ESTABLISHED -j T", Rule(target="T")),
        ("-m conntrack ! --ctstate ESTABLISHED -j T", Rule(target="T", always=True)),
        ("-m conntrack ! --ctstate NEW -j T", Rule(target="T")),
        ("-m conntrack --ctstate NEW --ctproto tcp -j T", Rule(target="T")),
        ("-m conntrack --ctproto tcp -j T", Rule(target="T")),
        ("-m state --state NEW -j T", Rule(target="T", always=True)),
        ("-m state --state NEW -m mark --mark 1 -j T", Rule(target="T")),
    ],
)
def test_a_rule_is_decoded(namespace: Namespace, family: Family, text: str, expected: Rule) -> None:
    rule = text.replace("ADDRESS", ADDRESS[family])
    namespace.restore(
        f"*mangle\n:S - [0:0]\n:T - [0:0]\n-A PREROUTING {rule}\n-A PREROUTING -j S\nCOMMIT\n",
        "legacy",
        family,
    )
    found = namespace.call(rules, family, "mangle", "PREROUTING")
    assert found == [expected, Rule(target="S", always=True)]


@in_namespace
@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("-p tcp -j DNAT --to-destination 10.0.0.1", "accept"),
        ("-p tcp -j REDIRECT --to-ports 1", "accept"),
        ("-p tcp -j LOG", ""),
    ],
)
def test_targets_that_end_the_table_are_known(
    namespace: Namespace, text: str, verdict: str
) -> None:
    namespace.restore(f"*nat\n-A PREROUTING {text}\nCOMMIT\n", "legacy")
    (rule,) = namespace.call(rules, "ipv4", "nat", "PREROUTING")
    assert rule.verdict == verdict


@in_namespace
def test_table_raw_sees_no_connection_states(namespace: Namespace) -> None:
    lines = "".join(
        f"-A PREROUTING -m conntrack --ctstate {state} -j T\n" for state in ("NEW", "INVALID")
    )
    namespace.restore(f"*raw\n:T - [0:0]\n{lines}COMMIT\n", "legacy")
    new, invalid = namespace.call(rules, "ipv4", "raw", "PREROUTING")
    assert (new.always, invalid.always) == (False, True)


# --- asking the kernel ---------------------------------------------------------------------------


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
def test_without_tables_nothing_is_asked_and_no_table_comes_to_be(
    namespace: Namespace, family: Family
) -> None:
    with pytest.raises(AbsentError, match="no table"):
        namespace.call(chains, family, "filter")
    assert namespace.call(names, family) == ""


@in_namespace
def test_a_table_that_is_not_there_is_not_asked_for(namespace: Namespace) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy")
    with pytest.raises(AbsentError, match="no table nat"):
        namespace.call(chains, "ipv4", "nat")
    assert namespace.call(names, "ipv4") == "filter\n"


def test_a_kernel_without_iptables_has_no_tables(tmp_path: Path) -> None:
    with pytest.raises(AbsentError):
        Tables(LAYOUTS["ipv4"], tmp_path)


@in_namespace
def test_a_user_who_may_not_see_the_names_of_tables_is_denied(namespace: Namespace) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy")

    def as_nobody() -> None:
        os.setuid(65534)
        chains("ipv4", "filter")

    with pytest.raises(DeniedError):
        namespace.call(as_nobody)


def test_only_two_options_can_be_asked_for() -> None:
    assert {option.value for option in Option} == {64, 65}
    assert "setsockopt" not in Path(xtables.__file__).read_text()


@in_namespace
def test_another_option_is_refused_before_it_reaches_the_kernel(namespace: Namespace) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy")

    def ask_for_revision() -> None:
        with Tables(LAYOUTS["ipv4"], PROCFS) as tables:
            tables._get(66, "filter", bytearray(84))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="66 is not a valid Option"):
        namespace.call(ask_for_revision)


def test_a_machine_of_unknown_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtables, "MACHINES", ("s390x",))
    with pytest.raises(BrokenError, match="layout of this machine"):
        Tables(LAYOUTS["ipv4"], PROCFS)


# --- a table that changes while it is read -------------------------------------------------------


class Disturbed(Tables):
    """Tables on which a command runs just before, or after, some of the requests for sizes."""

    before: Sequence[int] = ()
    after: Sequence[int] = ()
    command: tuple[str, ...] = ()
    stdin = b""
    asked = 0

    def info(self, name: str) -> Info:
        self._disturb(self.before)
        answer = super().info(name)
        self._disturb(self.after)
        self.asked += 1
        return answer

    def _disturb(self, turns: Sequence[int]) -> None:
        if self.asked in turns:
            subprocess.run(self.command, input=self.stdin, check=True)


class GrowingOnce(Disturbed):
    after: Sequence[int] = (0,)
    command = ("iptables-legacy", "-w", "-A", "INPUT")


class GrowingAlways(GrowingOnce):
    after = range(100)


class RuleMovingOnce(Disturbed):
    before = (1,)
    command = ("iptables-legacy-restore", "-w")
    stdin = b"*filter\n-A FORWARD\nCOMMIT\n"


def disturbed(kind: type[Disturbed]) -> dict[str, int]:
    with kind(LAYOUTS["ipv4"], PROCFS) as tables, tables.table("filter") as read:
        return dict(read.chains())


@in_namespace
def test_a_table_that_grows_between_size_and_entries_is_read_again(namespace: Namespace) -> None:
    namespace.restore("*filter\n-A INPUT\nCOMMIT\n", "legacy")
    found = namespace.call(disturbed, GrowingOnce)
    assert found == {"INPUT": 2, "FORWARD": 0, "OUTPUT": 0}


@in_namespace
def test_a_rule_that_moves_to_another_chain_meanwhile_is_counted_there(
    namespace: Namespace,
) -> None:
    namespace.restore("*filter\n-A INPUT\nCOMMIT\n", "legacy")
    found = namespace.call(disturbed, RuleMovingOnce)
    assert found == {"INPUT": 0, "FORWARD": 1, "OUTPUT": 0}


@in_namespace
def test_a_table_that_never_stands_still_is_given_up(namespace: Namespace) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy")
    with pytest.raises(BrokenError, match="changed during each"):
        namespace.call(disturbed, GrowingAlways)


# --- memory --------------------------------------------------------------------------------------


@in_namespace
def test_the_copy_of_a_table_is_given_back_even_when_its_user_fails(namespace: Namespace) -> None:
    namespace.restore(rulesets.iptables(rulesets.cluster(1000, 13)), "legacy")

    def growth() -> tuple[int, int, list[int]]:
        chains("ipv4", "nat")
        before, left = resident(), []
        with Tables(LAYOUTS["ipv4"], PROCFS) as tables:
            for _ in range(3):
                # The traceback of a caught error keeps what its frames hold.
                try:
                    with tables.table("nat") as table:
                        held = resident() - before
                        raise BrokenError("the user's own")
                except BrokenError as error:
                    caught = error
                    left.append(resident() - before)
            assert caught.__traceback__
            return table.info.size, held, left

    size, held, left = namespace.call(growth)
    assert size > 10_000_000
    assert held > size
    assert max(left) < 2**22


# --- blobs that the kernel would not give ---------------------------------------------------------


def reference_entries(layout: Layout, blob: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(next_offset, own offset, target's name, text behind it) of each entry, one after another.

    Raises struct.error or ValueError where there is none.
    """
    at = 0
    while at < len(blob):
        target, following = struct.unpack_from("=HH", blob, at + layout.offsets)
        if following < 144 or at + following > len(blob) or following % 8:
            raise ValueError(following)
        _, name, _, text = struct.unpack_from("=H29sB30s", blob + bytes(64), at + target)
        yield following, at, name.split(b"\0")[0], text.split(b"\0")[0]
        at += following


def reference(layout: Layout, info: Info, blob: bytes) -> list[tuple[str, int]]:
    """Chains and numbers of rules as libiptc finds them (libiptc.c, cache_add_entry)."""
    bases = {start: name for name, start, _ in info.base_chains}
    found: list[list[str]] = []
    for _, at, target, text in reference_entries(layout, blob):
        if at in bases:
            found.append([bases[at], "its first rule, or its policy"])
        elif target == b"ERROR":
            found.append([text.decode(errors="backslashreplace")])
        else:
            found[-1].append("rule")
    assert found.pop() == ["ERROR"]
    return [(name, len(rest) - 1) for name, *rest in found]


def answer(layout: Layout, info: Info, blob: bytes) -> list[tuple[str, int]] | None:
    """What the parser says of a blob, None when it calls it broken; its rules must bear it out."""
    try:
        table = Table(layout, info, memoryview(blob).cast("I"))
    except BrokenError:
        return None
    found = list(table.chains())
    known = {name for name, _ in found}
    for name in known:
        try:
            decoded = table.rules(name)
        except BrokenError:
            continue
        assert len(decoded) == dict(reversed(found))[name]
        assert {rule.target for rule in decoded} <= known | {""}
    return found


@functools.cache
def sample(family: Family) -> tuple[Info, bytes]:
    """A table with rules of many kinds."""
    with Namespace() as namespace:
        ruleset = rulesets.iptables(rulesets.cluster(3, 2, family=family), family=family)
        namespace.restore(ruleset, "legacy", family)
        more = "-A OUTPUT -m conntrack --ctstate NEW -g X\n-A X -m state --state NEW -j RETURN\n"
        namespace.restore(f"*nat\n:X - [0:0]\n{more}COMMIT\n", "legacy", family, flush=False)
        return namespace.call(entries, family, "nat")


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sample_is_read_as_libiptc_does(family: Family) -> None:
    info, blob = sample(family)
    assert answer(LAYOUTS[family], info, blob) == reference(LAYOUTS[family], info, blob)
    assert len(blob) == info.size


def interesting(blob: bytes) -> st.SearchStrategy[bytes]:
    words = st.sampled_from([0, 1, 4, 8, 112, 144, 152, 176, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    lengths = st.integers(0, len(blob) // 8).map(lambda count: count * 8)
    return st.one_of(
        words.map(lambda word: struct.pack("=I", word)),
        words.map(lambda word: struct.pack("=H", word & 0xFFFF)),
        lengths.map(lambda length: struct.pack("=I", length)),
        st.binary(min_size=1, max_size=8),
    )


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_blob_is_broken_or_read_as_libiptc_would(
    family: Family, data: st.DataObject
) -> None:
    layout = LAYOUTS[family]
    info, blob = sample(family)
    starts = [at for _, at, _, _ in reference_entries(layout, blob)]
    changed = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 3))):
        inside = data.draw(
            st.one_of(
                st.integers(0, layout.header + 80),
                # target_offset, next_offset, and the first bytes of a target without matches
                st.integers(layout.offsets, layout.offsets + 3),
                st.integers(layout.header, layout.header + 40),
            )
        )
        at = min(data.draw(st.sampled_from(starts)) + inside, len(blob) - 8)
        new = data.draw(interesting(blob))
        changed[at : at + len(new)] = new
    found = answer(layout, info, bytes(changed))
    assert found is None or found == reference(layout, info, bytes(changed))


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
def test_every_truncation_is_broken(family: Family) -> None:
    info, blob = sample(family)
    for length in range(0, len(blob), 4):
        announced = Info(info.table, info.base_chains, info.entries, length)
        assert answer(LAYOUTS[family], info, blob[:length]) is None
        assert answer(LAYOUTS[family], announced, blob[:length]) is None


@pytest.mark.parametrize("family", FAMILIES)
@given(blob=st.binary(max_size=4096), entries=st.integers(0, 30))
def test_random_bytes_are_broken(family: Family, blob: bytes, entries: int) -> None:
    blob += bytes(-len(blob) % 8)
    info = Info("nat", (), entries, len(blob))
    assert answer(LAYOUTS[family], info, blob) is None


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("following", [0, 8, 150, 151, 0xFFF8, 0xFFFF])
def test_an_entry_of_impossible_length_is_broken(family: Family, following: int) -> None:
    layout = LAYOUTS[family]
    info, blob = sample(family)
    for _, at, _, _ in reference_entries(layout, blob):
        changed = bytearray(blob)
        struct.pack_into("=H", changed, at + layout.offsets + 2, following)
        assert answer(layout, info, bytes(changed)) is None


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offset", [4, 151, 2**30, 2**31 - 1])
def test_a_jump_to_where_no_chain_begins_is_broken(family: Family, offset: int) -> None:
    layout = LAYOUTS[family]
    info, blob = sample(family)
    table = Table(layout, info, memoryview(blob).cast("I"))
    first = table._starts[[name for name, _ in table.chains()].index("KUBE-SERVICES")] * 4
    (target,) = struct.unpack_from("=H", blob, first + layout.offsets)
    changed = bytearray(blob)
    struct.pack_into("=i", changed, first + target + 32, offset)
    with pytest.raises(BrokenError, match=re.escape(f"byte {offset}")):
        Table(layout, info, memoryview(changed).cast("I")).rules("KUBE-SERVICES")


@given(st.binary(max_size=100))
def test_random_sizes_are_broken_or_a_size(blob: bytes) -> None:
    try:
        info = parse_info(blob)
    except BrokenError:
        return
    assert len(blob) == 84
    assert info.size % 8 == 0
