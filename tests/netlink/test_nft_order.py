"""The order of rules that is kept from notifications, against what the kernel has."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab import rulesets
from tests.lab.namespace import Namespace, requirements
from vipscope.netlink.nf_tables import Reader
from vipscope.netlink.nfnetlink import HEADER
from vipscope.netlink.nft_mirror import Journal, Mirror
from vipscope.netlink.nft_notify import Listener, Notified, read_datagram
from vipscope.netlink.nft_order import HANDLE, RuleOrder
from vipscope.snapshot import Rule

pytestmark = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

BASE, SERVICES = "PREROUTING", "KUBE-SERVICES"
KEYS = {(2, "nat", chain) for chain in (BASE, SERVICES)}
TARGETS = 9
RULESET = "\n".join(
    [
        "table ip nat {",
        *(f"chain KUBE-SVC-{number} {{ }}" for number in range(TARGETS)),
        f"chain {SERVICES} {{",
        *(f"ip daddr 10.0.0.{number} jump KUBE-SVC-{number}" for number in range(4)),
        "}",
        f"chain {BASE} {{ type nat hook prerouting priority -100;",
        "ip daddr 192.0.2.1 accept",
        f"jump {SERVICES}",
        "ip daddr 192.0.2.2 accept",
        "}",
        "}",
    ]
)


class Follower:
    """A mirror of the present namespace that is told message by message."""

    def __init__(self) -> None:
        self.listener = Listener(1 << 24)
        self.reader = Reader()
        self.journal = Journal()
        self.mirror = Mirror(self.journal)
        self.mirror.fill(self.reader)
        self.mirror.depths(self.reader)

    def close(self) -> None:
        self.listener.close()
        self.reader.close()

    def hear(self) -> list[bytes]:
        """The messages that wait, not yet taken. The kernel tells before a commit returns."""
        return [message for each in self.listener.datagrams() for message in split(each)]

    def take(self, messages: Sequence[bytes], together: int = 1) -> set[tuple[int, str, str]]:
        """Bring the mirror up to these messages; the chains that have to be read again."""
        notified = Notified(self.mirror.orders)
        for start in range(0, len(messages), together):
            read_datagram(b"".join(messages[start : start + together]), notified)
        self.mirror.apply(notified.changes)
        self.mirror.mark(notified.rules_changed, notified.followed)
        return {
            key
            for key in notified.rules_changed
            if key not in notified.followed or not self.mirror.orders[key].fits
        }

    def assert_exact(self) -> None:
        """Compare with a mirror that is filled now, and each chain with what is read now."""
        self.mirror.refresh(self.reader)
        assert not self.mirror.unread
        depths = self.mirror.depths(self.reader)
        anew = Mirror()
        anew.fill(self.reader)
        assert depths == anew.depths(self.reader)
        assert self.mirror.counts() == anew.counts()
        for key, order in self.mirror.orders.items():
            assert list(order.rules()) == list(self.reader.rules(*key).rules()), key


def split(datagram: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(datagram):
        (length,) = struct.unpack_from("=I", datagram, offset)
        yield datagram[offset : offset + length]
        offset += length


def commit(script: str, command: str = "nft -f -") -> bool:
    """Whether the kernel took it."""
    done = subprocess.run(
        command.split(), input=script, text=True, capture_output=True, check=False
    )
    return done.returncode == 0


def handles(chain: str) -> list[int]:
    """Of the rules of a chain, in order, as nft tells them."""
    argv = ["nft", "-a", "-j", "list", "chain", "ip", "nat", chain]
    listed = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    return [each["rule"]["handle"] for each in listed["nftables"] if "rule" in each]


def rule(number: int) -> str:
    """No two of these are equal, so that a wrong order cannot look like the right one."""
    return f"ip daddr 10.0.0.{number} jump KUBE-SVC-{number}"


class Edit(NamedTuple):
    """One command of a transaction."""

    form: str
    chain: str
    rule: int
    at: int

    def text(self, known: Sequence[int]) -> str:
        handle = known[self.at % len(known)] if known else 1
        return self.form.format(
            chain=f"ip nat {self.chain}", rule=rule(self.rule), handle=handle, index=self.at % 3
        )


FORMS = (
    "add rule {chain} {rule}",
    "insert rule {chain} {rule}",
    "add rule {chain} position {handle} {rule}",
    "insert rule {chain} position {handle} {rule}",
    "add rule {chain} index {index} {rule}",
    "insert rule {chain} index {index} {rule}",
    "replace rule {chain} handle {handle} {rule}",
    "delete rule {chain} handle {handle}",
    "delete rule {chain} handle {handle}\nadd rule {chain} position {handle} {rule}",
    "flush chain {chain}",
    "flush chain {chain}\nadd rule {chain} {rule}\nadd rule {chain} counter\nadd rule {chain} drop",
)
edits = st.builds(
    Edit,
    st.sampled_from(FORMS),
    st.sampled_from((SERVICES, BASE)),
    st.integers(0, TARGETS - 1),
    st.integers(0, 5),
)
transactions = st.lists(edits, min_size=1, max_size=5)


def write(transaction: Sequence[Edit]) -> None:
    """Commit it, or as much of it as the kernel takes as one transaction."""
    known = {chain: handles(chain) for chain in (SERVICES, BASE)}
    lines = [edit.text(known[edit.chain]) for edit in transaction]
    while lines and not commit("\n".join(lines)):
        lines.pop()


@settings(max_examples=40)
@given(data=st.data())
def test_any_sequence_of_edits_leaves_what_the_kernel_has(data: st.DataObject) -> None:
    # Each batch: transactions, how many messages of theirs are taken before chains are read again,
    # and how many come in one datagram.
    batches = data.draw(
        st.lists(
            st.tuples(
                st.lists(transactions, min_size=1, max_size=3),
                st.none() | st.integers(0, 20),
                st.integers(1, 6),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def follow() -> None:
        follower = Follower()
        for written, early, together in batches:
            for transaction in written:
                write(transaction)
            messages = follower.hear()
            if early is not None:
                # The kernel is ahead of what is told: what is told next is no news in these.
                follower.take(messages[:early], together)
                follower.mirror.mark(KEYS)
                follower.mirror.refresh(follower.reader)
                follower.mirror.depths(follower.reader)
            follower.take(messages[early or 0 :], together)
            follower.assert_exact()
        follower.close()

    with Namespace() as namespace:
        namespace.nft(RULESET)
        namespace.call(follow)


def flush_and_append(numbers: Sequence[int]) -> str:
    """As iptables-nft-restore --noflush does it with a chain that it is given whole."""
    rules = [f"-A {SERVICES} -d 10.0.0.{number} -j KUBE-SVC-{number}" for number in numbers]
    return "\n".join(["*nat", f":{SERVICES} - [0:0]", *rules, "COMMIT", ""])


RESTORE = "iptables-nft-restore --noflush"
HEAD, MIDDLE, TAIL = 0, 1, -1


@pytest.mark.parametrize(
    ("scripts", "read_again"),
    [
        pytest.param([flush_and_append(range(9))], False, id="flush and append"),
        pytest.param([flush_and_append([7])], False, id="flush and append one"),
        pytest.param([flush_and_append([])], False, id="flush"),
        pytest.param([flush_and_append([]), flush_and_append([3, 1, 2])], False, id="from empty"),
        pytest.param(["delete rule {chain} handle {middle}"], False, id="delete in the middle"),
        pytest.param(
            ["delete rule {chain} handle {head}\ndelete rule {chain} handle {tail}"],
            False,
            id="delete head and tail",
        ),
        pytest.param(["insert rule {chain} counter"], True, id="insert at the head"),
        pytest.param(["insert rule {chain} counter\n" * 2], True, id="insert twice"),
        pytest.param(["add rule {chain} position {middle} counter"], True, id="add behind one"),
        pytest.param(["insert rule {chain} position {middle} counter"], True, id="insert before"),
        pytest.param(["replace rule {chain} handle {middle} counter"], True, id="replace"),
        pytest.param(["replace rule {chain} handle {tail} counter"], True, id="replace the last"),
        pytest.param(
            ["delete rule {chain} handle {head}\nadd rule {chain} position {head} counter"],
            True,
            id="add behind a deleted head",
        ),
        pytest.param(
            # The one rule of the first transaction is not the first after the second.
            [
                flush_and_append([1]),
                "add rule {chain} counter\nadd rule {chain} drop\ninsert rule {chain} accept",
            ],
            True,
            id="insert after rules that are appended to one",
        ),
    ],
)
def test_only_what_is_certain_is_not_read_again(scripts: list[str], read_again: bool) -> None:
    def follow() -> set[tuple[int, str, str]]:
        follower = Follower()
        known = handles(SERVICES)
        places = {"head": known[HEAD], "middle": known[MIDDLE], "tail": known[TAIL]}
        for script in scripts:
            text = script.format(chain=f"ip nat {SERVICES}", **places)
            assert commit(text, RESTORE if text.startswith("*") else "nft -f -")
        unread = follower.take(follower.hear())
        assert (2, "nat", SERVICES) in follower.journal.chains or unread
        follower.assert_exact()
        assert (2, "nat", SERVICES) in follower.journal.chains
        follower.close()
        return unread

    with Namespace() as namespace:
        namespace.nft(RULESET)
        assert bool(namespace.call(follow)) is read_again


def test_a_sync_of_kube_proxy_is_followed_without_reading_its_services() -> None:
    services = rulesets.cluster(200, 3)
    changed = services[7].without(services[7].endpoints[0])
    after = (*services[:7], changed, *services[8:])
    flips = (
        rulesets.iptables_flip(services, changed, seed=1),
        rulesets.iptables_flip(after, services[7], seed=2),
    )

    def follow() -> None:
        follower = Follower()
        for flip in flips * 2:
            before = {key: [*order.rules()] for key, order in follower.mirror.orders.items()}
            assert commit(flip, RESTORE)
            assert (2, "nat", SERVICES) not in follower.take(follower.hear(), together=7)
            follower.assert_exact()
            order = follower.mirror.orders[2, "nat", SERVICES].rules()
            assert before[2, "nat", SERVICES] != list(order)
            assert sorted(before[2, "nat", SERVICES]) == sorted(order)
        follower.close()

    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(services))
        namespace.call(follow)


def test_rules_told_to_nobody_are_read_again() -> None:
    def follow() -> None:
        follower = Follower()
        assert commit(flush_and_append([5, 6]), RESTORE)
        notified = Notified()
        for message in follower.hear():
            read_datagram(message, notified)
        follower.mirror.mark(notified.rules_changed, notified.followed)
        assert follower.mirror.unread
        follower.assert_exact()
        follower.close()

    with Namespace() as namespace:
        namespace.nft(RULESET)
        namespace.call(follow)


def test_a_rule_without_expressions_does_not_fit() -> None:
    order = RuleOrder()
    head = struct.pack("=HH4s", 8, 1, b"nat") + struct.pack("=HH4s", 8, 2, b"CHN")
    body = head + HANDLE + bytes(8) + struct.pack("=HH", 4, 4)
    message = struct.pack("=IHHIIBBH", HEADER + len(body), 10 << 8 | 6, 0, 0, 0, 2, 0, 0) + body
    notified = Notified({(2, "nat", "CHN"): order})
    read_datagram(message, notified)
    assert notified.followed == {(2, "nat", "CHN")}
    assert not order.fits
    # Read from a dump it is a rule as any other.
    order = RuleOrder()
    order.read(memoryview(body), len(head) + len(HANDLE))
    assert list(order.rules()) == [Rule(always=True)]
