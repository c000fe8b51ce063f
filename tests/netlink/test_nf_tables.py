"""The wire formats of nf_tables: what is sent can only ask, and no answer can do harm."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab import rulesets
from tests.lab.namespace import Namespace, requirements
from vipscope.netlink import nfnetlink, nft_rule
from vipscope.netlink.nf_tables import (
    ChainLayout,
    ChainRun,
    Reader,
    chain_head,
    chain_layout,
    chain_run,
    element_keys,
    present,
    set_head,
)
from vipscope.netlink.nfnetlink import (
    Get,
    GetSocket,
    InterruptedDumpError,
    attributes,
    check_error,
    messages,
    string_attribute,
    tally,
)
from vipscope.netlink.nft_notify import Notified, read_datagram
from vipscope.snapshot import AbsentError, BrokenError, DeniedError, Rule

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

CAPTURE = Path(__file__).parent.parent / "captures" / "nftables" / "small.nft"
HONEST = (BrokenError, AbsentError, DeniedError, InterruptedDumpError)
"""All that a reader may answer a message that makes no sense with."""


@cache
def datagrams() -> list[bytes]:
    """Real answers and notifications of a kernel that holds a captured ruleset."""

    def collect() -> list[bytes]:
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, nfnetlink.NETLINK_NETFILTER)
        listener.bind((0, 0))
        listener.setsockopt(nfnetlink.SOL_NETLINK, nfnetlink.NETLINK_ADD_MEMBERSHIP, 7)
        listener.setsockopt(socket.SOL_SOCKET, nfnetlink.SO_RCVBUFFORCE, 1 << 24)
        subprocess.run(["nft", "-f", str(CAPTURE)], check=True)
        found = []
        asking = GetSocket()
        for get in (Get.TABLE, Get.CHAIN, Get.RULE, Get.SET):
            asking.ask(get, 0, dump=True)
            while True:
                found.append(bytes(asking.view[: asking.receive()]))
                if struct.unpack_from("=H", found[-1], 4)[0] == nfnetlink.NLMSG_DONE:
                    break
        asking.close()
        listener.setblocking(False)
        while True:
            try:
                found.append(listener.recv(1 << 16))
            except BlockingIOError:
                listener.close()
                return found

    with Namespace() as namespace:
        return namespace.call(collect)


@cache
def layouts() -> set[ChainLayout]:
    """The layouts of the chains in the real answers."""
    found = set()
    for data in datagrams():
        for kind, _, family, _, payload in messages(memoryview(data)):
            if kind == Get.CHAIN - 1:
                layout = chain_layout(chain_head(family, payload), payload)
                if layout is not None:
                    found.add(layout)
    return found


def swallow(data: bytes) -> None:
    """Read a datagram in every way that there is."""

    def each() -> Iterator[tuple[int, int, memoryview]]:
        for kind, _, family, _, payload in messages(memoryview(data)):
            yield kind, family, payload

    readers: list[Callable[[], object]] = [
        lambda: read_datagram(data, Notified()),
        lambda: [list(attributes(payload)) for _, _, payload in each()],
        lambda: [chain_head(family, payload) for _, family, payload in each()],
        lambda: [chain_run(memoryview(data), layout) for layout in layouts()],
        lambda: [set_head(family, payload) for _, family, payload in each()],
        lambda: [element_keys(payload) for _, _, payload in each()],
        lambda: [nft_rule.decode(payload) for _, _, payload in each()],
    ]
    for reader in readers:
        with contextlib.suppress(*HONEST):
            reader()


def tallied(data: bytes, kind: int) -> int | None:
    """What the hot loop counts in a datagram of messages of one type; None when that is refused.

    Behind the datagram is in the buffer what an earlier one left there: another such message.
    """
    left = struct.pack("=IHHII", 24, kind, 2, 0, 0) + bytes(8)
    buffer = bytearray(data + left * (nfnetlink.BUFFER // len(left) + 1))[: nfnetlink.BUFFER]
    view = memoryview(buffer)
    try:
        return tally(view.cast("I"), view.cast("H"), len(data), kind)
    except HONEST:
        return None


def walked(data: bytes, kind: int) -> int | None:
    """The same by the format alone: None when a length lies or a message is of another type."""
    count, rest = 0, data
    while rest:
        if len(rest) < 20:  # netlink's header and netfilter's
            return None
        length, found = struct.unpack_from("=IH", rest)
        if not 20 <= length <= len(rest) or found != kind:
            return None
        count, rest = count + 1, rest[length + -length % 4 :]
    return count


@cache
def dumped() -> list[tuple[int, bytes]]:
    """Real datagrams that hold messages of one type only, with that type: objects in a dump."""
    each = [(struct.unpack_from("=H", data, 4)[0], data) for data in datagrams()]
    found = [(kind, data) for kind, data in each if kind > nfnetlink.NLMSG_DONE]
    return [(kind, data) for kind, data in found if walked(data, kind) is not None]


@given(st.binary(max_size=200))
def test_random_bytes_are_an_error_and_nothing_else(data: bytes) -> None:
    swallow(data)
    assert tallied(data, Get.RULE - 1) == walked(data, Get.RULE - 1)


@in_namespace
@given(st.data())
def test_a_mutilated_answer_is_an_error_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(datagrams())))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(whole) - 1))
        whole[position] = data.draw(st.integers(0, 255))
    swallow(bytes(whole[: data.draw(st.integers(1, len(whole)))]))


@in_namespace
@given(st.data())
def test_a_mutilated_answer_is_counted_as_its_messages_of_the_type_asked_for_or_refused(
    data: st.DataObject,
) -> None:
    kind, original = data.draw(st.sampled_from(dumped()))
    whole = bytearray(original)
    starts = [0]
    while starts[-1] < len(whole):
        starts.append(starts[-1] + struct.unpack_from("=I", whole, starts[-1])[0])
    for _ in range(data.draw(st.integers(1, 3))):
        # In a header: nothing else is looked at.
        position = data.draw(st.sampled_from(starts[:-1])) + data.draw(st.integers(0, 7))
        whole[position] = data.draw(st.integers(0, 255))
    assert tallied(bytes(whole), kind) == walked(bytes(whole), kind)


@in_namespace
@given(st.data())
def test_an_answer_cut_within_a_message_is_refused_and_one_cut_between_two_is_one_of_fewer(
    data: st.DataObject,
) -> None:
    """The latter the kernel does not do: it cuts where the buffer ends, and tells the whole length.

    That is longer than the buffer then, which is refused as well. A datagram that is lost is told
    by the dump that is asked for next, which the kernel refuses.
    """
    kind, whole = data.draw(st.sampled_from(dumped()))
    between = [0]
    while between[-1] < len(whole):
        between.append(between[-1] + struct.unpack_from("=I", whole, between[-1])[0])
    cut = data.draw(st.integers(1, len(whole)) | st.sampled_from(between[1:]))
    expected = between.index(cut) if cut in between else None
    assert tallied(whole[:cut], kind) == expected


def test_a_datagram_longer_than_the_buffer_is_refused() -> None:
    view = memoryview(bytearray(struct.pack("=IHHII", 24, 2566, 2, 0, 0) + bytes(8)))
    with pytest.raises(BrokenError, match="at most"):
        tally(view.cast("I"), view.cast("H"), nfnetlink.BUFFER + 4, 2566)


@in_namespace
def test_notifications_of_a_load_are_those_of_its_objects() -> None:
    notified = Notified()
    for datagram in datagrams():
        read_datagram(datagram, notified)
    text = CAPTURE.read_text()
    # The dumps that were recorded as well bring each chain and set a second time.
    assert notified.counts["chain", "add"] == 2 * text.count("\tchain ")
    assert [commit.process for commit in notified.commits] == ["nft"]


def test_only_questions_can_be_sent() -> None:
    assert {each.name for each in Get} == {
        "TABLE", "CHAIN", "RULE", "SET", "SET_ELEMENTS", "GENERATION", "CONNTRACK",
    }  # fmt: skip
    asking = GetSocket()
    try:
        # of connection tracking and of nf_tables
        for kind in (*range(1 << 8, 2 << 8), *range(10 << 8, 11 << 8)):
            if kind not in set(Get):
                with pytest.raises(ValueError, match="is not a valid Get"):
                    asking.ask(kind, 2, dump=True)
                with pytest.raises(ValueError, match="is not a valid Get"):
                    asking.count(kind, 2, b"", 2, ["c"])
    finally:
        asking.close()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1, DeniedError),
        (13, DeniedError),
        (22, AbsentError),
        (4, InterruptedDumpError),
        (12, BrokenError),
    ],
)
def test_an_error_number_becomes_its_outcome(code: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_error(memoryview(struct.pack("=IHHIIi", 20, 2, 0, 0, 0, -code)))
    check_error(memoryview(struct.pack("=IHHIIi", 20, 2, 0, 0, 0, 0)))


def procfs(directory: Path, modules: str | None, symbols: str = "") -> Path:
    if modules is not None:
        (directory / "modules").write_text(modules)
    (directory / "kallsyms").write_text(symbols)
    return directory


def test_a_loaded_module_is_present(tmp_path: Path) -> None:
    assert present(procfs(tmp_path, "nf_tables 1 0 - Live 0x0\n"))


def test_a_built_in_nf_tables_is_present(tmp_path: Path) -> None:
    assert present(procfs(tmp_path, "other 1 0 - Live 0x0\n", "0000 t nf_tables_getgen\n"))


def test_a_module_that_is_not_loaded_is_not_present(tmp_path: Path) -> None:
    assert not present(procfs(tmp_path, "nf_tables_x 1 0 - Live 0x0\n", "0000 t nf_other\n"))


def test_a_kernel_that_cannot_load_modules_may_be_asked(tmp_path: Path) -> None:
    assert present(procfs(tmp_path, None))


def names_of(reader: Reader) -> list[str]:
    return [
        name
        for chain in reader.chains()
        for name in (chain.names if isinstance(chain, ChainRun) else [chain.name])
    ]


def decoded(script: str, chain: str) -> list[Rule]:
    def read() -> list[Rule]:
        reader = Reader()
        try:
            return [*reader.rules(2, "t", chain).rules()]
        finally:
            reader.close()

    with Namespace() as namespace:
        namespace.nft(script)
        return namespace.call(read)


@in_namespace
def test_rules_are_decoded_into_what_they_do_with_a_first_packet() -> None:
    rules = {
        "counter": Rule(always=True),
        "jump other": Rule(target="other", always=True),
        "goto other": Rule(target="other", goto=True, always=True),
        "ip saddr 10.0.0.1 jump other": Rule(target="other"),
        "tcp dport 80 goto other": Rule(target="other", goto=True),
        "ct state new jump other": Rule(target="other", always=True),
        "ct state new,related counter jump other": Rule(target="other", always=True),
        "ct state established jump other": Rule(target="other"),
        "ct state != new jump other": Rule(target="other"),
        "meta mark set 0x1": Rule(always=True),
        "meta mark 0x1 jump other": Rule(target="other"),
        "accept": Rule(verdict="accept", always=True),
        "drop": Rule(verdict="drop", always=True),
        "return": Rule(verdict="return", always=True),
        "ip daddr 10.0.0.1 return": Rule(verdict="return"),
        'log prefix "x" accept': Rule(verdict="accept", always=True),
        "ip daddr vmap @m": Rule(lookup="m"),
        "ip daddr { 10.0.0.1, 10.0.0.2 } accept": Rule(verdict="accept"),
    }
    body = "\n".join(f"    {rule}" for rule in rules)
    script = f"""table ip t {{
  map m {{ type ipv4_addr : verdict; }}
  chain other {{ }}
  chain c {{
{body}
  }}
}}"""
    assert decoded(script, "c") == list(rules.values())


@in_namespace
def test_names_of_every_length_survive_the_round_trip() -> None:
    names = ["c" * length for length in (1, 2, 3, 4, 27, 28, 29, 127)]

    def read() -> tuple[list[str], list[int]]:
        reader = Reader()
        try:
            found = names_of(reader)
            return found, list(reader.count_rules(2, "t", found))
        finally:
            reader.close()

    with Namespace() as namespace:
        namespace.nft("\n".join(["add table ip t"] + [f"add chain ip t {each}" for each in names]))
        for number, name in enumerate(names):
            namespace.nft("\n".join([f"add rule ip t {name} counter"] * number or [""]))
        assert namespace.call(read) == (names, list(range(len(names))))


@pytest.mark.parametrize("most", [nfnetlink.BUFFER, 4096])
@in_namespace
def test_rules_are_counted_in_chains_of_one_datagram_of_many_and_of_none(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Also where the kernel has no more than a page for a datagram."""
    monkeypatch.setattr(nfnetlink, "BUFFER", most)
    sizes = {"none": 0, "one": 1, "some": 40, "empty": 0, "many": 2000, "last": 300}

    def read() -> list[list[int]]:
        reader = Reader()
        try:
            return [reader.count_rules(2, "t", names) for names in (sizes, ["many"], ["none"], [])]
        finally:
            reader.close()

    rules = "\n".join(
        f'add rule ip t {name} counter comment "{number}"'
        for name, size in sizes.items()
        for number in range(size)
    )
    with Namespace() as namespace:
        namespace.nft("\n".join(["add table ip t"] + [f"add chain ip t {each}" for each in sizes]))
        namespace.nft(rules)
        assert namespace.call(read) == [list(sizes.values()), [2000], [0], []]


@pytest.mark.parametrize("names", [["two"], ["two", "empty"], ["empty", "two"]])
@in_namespace
def test_a_dump_that_goes_on_unexpectedly_is_an_error_and_no_count(names: list[str]) -> None:
    """Behind a small rule one that does not fit into the same datagram."""

    def read() -> None:
        reader = Reader()
        try:
            with pytest.raises(BrokenError, match="busy"):
                reader.count_rules(2, "filter", names)
        finally:
            reader.close()

    comments = ["-m", "comment", "--comment", "x" * 255] * 107
    with Namespace() as namespace:
        for name in ("two", "empty"):
            namespace.run("iptables-nft", "-N", name)
        for conditions in (["-m", "comment", "--comment", "x" * 255] * 4, comments):
            namespace.run("iptables-nft", "-A", "two", *conditions, "-j", "RETURN")
        namespace.call(read)


class Slow:
    """A socket between whose first question for rules and the answer somebody adds a rule."""

    def __init__(self, plain: socket.socket) -> None:
        self.recv_into, self.close, self._plain = plain.recv_into, plain.close, plain
        self._added = False

    def send(self, request: bytes) -> int:
        sent = self._plain.send(request)
        if not self._added and request[4:6] == struct.pack("=H", Get.RULE):
            self._added = True
            subprocess.run(["nft", "add rule ip t one counter"], check=True)
        return sent


@pytest.mark.parametrize("names", [["one"], ["one", "none"], ["one", "other", "none", "other"]])
@in_namespace
def test_a_chain_that_grows_while_its_rules_are_counted_is_an_interruption(
    names: list[str],
) -> None:
    def read() -> list[int]:
        reader = Reader()
        with contextlib.closing(reader):
            reader._socket._socket = Slow(reader._socket._socket)  # type: ignore[assignment]
            with pytest.raises(InterruptedDumpError):
                reader.count_rules(2, "t", names)
        with contextlib.closing(Reader()) as reader:
            return reader.count_rules(2, "t", ["one"])

    with Namespace() as namespace:
        for name in ("one", "other", "none"):
            namespace.nft(f"add table ip t\nadd chain ip t {name}")
        namespace.nft("add rule ip t one counter\nadd rule ip t other counter")
        assert namespace.call(read) == [2]


def test_the_kernel_keeps_back_the_end_of_a_quiet_dump_and_nothing_else() -> None:
    quiet = 0x01010101
    kept = struct.pack("=IHHIIi", 20, nfnetlink.NLMSG_DONE, 2, quiet, 0, 0)
    told = [
        struct.pack("=IHHIIi", 20, nfnetlink.NLMSG_DONE, 2, 0, 0, 0),
        struct.pack("=IHHIIi", 20, nfnetlink.NLMSG_DONE, 2, quiet, 0, -4),
        struct.pack("=IHHIIi", 20, nfnetlink.NLMSG_ERROR, 2, quiet, 0, 0),
        struct.pack("=IHHIIi", 24, Get.RULE - 1, 2, quiet, 0, 0) + b"rule",
    ]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        nfnetlink.quieten(ours)
        for message in told:
            theirs.send(message)
            theirs.send(kept)
        ours.setblocking(False)
        assert [ours.recv(100) for _ in told] == told
        with pytest.raises(BlockingIOError):
            ours.recv(100)


RULE = struct.pack("=IHHII", 24, Get.RULE - 1, 2, 0, 0) + bytes(8)
INTERRUPTED = struct.pack("=IHHII", 24, Get.RULE - 1, 2 | nfnetlink.NLM_F_DUMP_INTR, 0, 0) + bytes(
    8
)
CHAIN = struct.pack("=IHHII", 24, Get.CHAIN - 1, 2, 0, 0) + bytes(8)
END = struct.pack("=IHHIIi", 20, nfnetlink.NLMSG_DONE, 2, 0, 0, 0)


@pytest.mark.parametrize("other", [CHAIN, END])
def test_what_is_no_rule_is_not_counted_as_one(other: bytes) -> None:
    for datagram in (other, RULE + other, RULE + other + RULE, other + RULE):
        assert tallied(datagram, Get.RULE - 1) is None
    assert tallied(RULE + RULE, Get.RULE - 1) == 2


def test_messages_of_an_interrupted_dump_are_counted_whatever_their_flags() -> None:
    # The kernel marks a datagram's first. That the ruleset changed is told by its generation.
    assert tallied(INTERRUPTED + RULE + RULE, Get.RULE - 1) == 3


def test_an_error_among_the_messages_is_raised() -> None:
    refused = struct.pack("=IHHIIi", 20, nfnetlink.NLMSG_ERROR, 0, 0, 0, -1)
    view = memoryview(RULE + refused)
    with pytest.raises(DeniedError):
        tally(view.cast("I"), view.cast("H"), len(view), Get.RULE - 1)


@in_namespace
def test_chains_of_many_datagrams_are_told_with_their_tables_and_handles() -> None:
    """Names of several lengths, and base chains among them."""
    names = [f"c{'c' * (number // 300)}-{number:04}" for number in range(3000)]
    script = ["add table ip t", "add table ip6 u"]
    for number, name in enumerate(names):
        hook = "{ type filter hook input priority 0; }" if number % 999 == 1 else ""
        table = "ip t" if number < 2000 else "ip6 u"
        script.append(f"add chain {table} {name} {hook}")

    def read() -> list[tuple[int, str, str]]:
        reader = Reader()
        found: list[tuple[int, str, str]] = []
        newest: dict[str, int] = {}
        for chain in reader.chains():
            run = chain.names if isinstance(chain, ChainRun) else [chain.name]
            found += [(chain.family, chain.table, name) for name in run]
            last = chain.newest if isinstance(chain, ChainRun) else chain.handle
            newest[chain.table] = max(newest.get(chain.table, 0), last)
        reader.close()
        assert newest == {"t": 2000, "u": 1000}
        return found

    with Namespace() as namespace:
        namespace.nft("\n".join(script))
        expected = [(2, "t", name) for name in names[:2000]]
        expected += [(10, "u", name) for name in names[2000:]]
        assert namespace.call(read) == expected


def test_a_string_attribute_is_padded_to_four_bytes() -> None:
    for length in range(9):
        packed = string_attribute(2, "n" * length)
        assert len(packed) % 4 == 0
        ((kind, value),) = attributes(memoryview(packed))
        assert (kind, bytes(value)) == (2, b"n" * length + b"\0")


@in_namespace
@given(st.data())
def test_a_run_of_chains_is_what_its_messages_say_or_nothing(data: st.DataObject) -> None:
    names = [f"KUBE-SEP-{number:016d}" for number in range(40)]
    whole = bytearray(chains_of(tuple(names)))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    try:
        one_by_one = [
            chain_head(family, payload)
            for kind, _, family, _, payload in messages(memoryview(whole))
        ]
    except HONEST:
        one_by_one = []
    with contextlib.suppress(*HONEST):
        run = chain_run(memoryview(whole), layout_of(tuple(names)))
        if run is not None:
            assert run.names == [chain.name for chain in one_by_one]
            assert {(run.family, run.table)} == {
                (chain.family, chain.table) for chain in one_by_one
            }
            assert run.newest == max(chain.handle for chain in one_by_one)


@cache
def chains_of(names: tuple[str, ...]) -> bytes:
    """A real datagram that tells of chains with these names, which are equally long."""

    def ask() -> bytes:
        asking = GetSocket()
        asking.ask(Get.CHAIN, 0, dump=True)
        answer = bytes(asking.view[: asking.receive()])
        asking.close()
        return answer

    with Namespace() as namespace:
        namespace.nft("\n".join(["add table ip nat", *(f"add chain ip nat {n}" for n in names)]))
        return namespace.call(ask)


@cache
def layout_of(names: tuple[str, ...]) -> ChainLayout:
    datagram = memoryview(chains_of(names))
    _, _, family, _, payload = next(messages(datagram))
    layout = chain_layout(chain_head(family, payload), payload)
    assert layout is not None
    assert chain_run(datagram, layout) is not None
    return layout


@in_namespace
@given(st.data())
def test_a_rule_decoded_by_its_shape_is_what_its_attributes_say(data: st.DataObject) -> None:
    rules = services_rules()
    decoder = nft_rule.Decoder()
    for rule in rules:
        assert decoder(memoryview(rule)) == nft_rule.decode(memoryview(rule))
    mutilated = bytearray(data.draw(st.sampled_from(rules)))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(mutilated) - 1))
        mutilated[position] = data.draw(st.integers(0, 255))
    try:
        expected = nft_rule.decode(memoryview(mutilated))
    except BrokenError:
        return
    # Learning a shape looks deeper, so it may find what is broken where decoding did not look.
    with contextlib.suppress(BrokenError):
        assert decoder(memoryview(mutilated)) == expected


@cache
def services_rules() -> list[bytes]:
    """Real rules of a KUBE-SERVICES, two of them on the connection's state."""

    def ask() -> list[bytes]:
        asking = GetSocket()
        body = string_attribute(1, "nat") + string_attribute(2, "KUBE-SERVICES")
        found = [bytes(payload) for _, _, payload in asking.dump(Get.RULE, 2, body)]
        asking.close()
        return found

    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(6, 1)))
        for state in ("new", "established"):
            namespace.nft(f"insert rule ip nat KUBE-SERVICES ct state {state} jump KUBE-NODEPORTS")
        return namespace.call(ask)
