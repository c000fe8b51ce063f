"""The collector xtables against iptables-legacy in network namespaces."""

from __future__ import annotations

import asyncio
import ctypes
import gzip
import itertools
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

from tests.lab import counts, rulesets, strategies
from tests.lab.foreign import foreign
from tests.lab.namespace import Family, Namespace, requirements
from vipscope.budget import Budget
from vipscope.collectors import xtables
from vipscope.collectors.xtables import Xtables
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, Count, DeniedError, ReadError, Ruleset

CAPTURES = Path(__file__).parents[1] / "captures" / "iptables"
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
MEBIBYTE = 2**20

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as fresh:
        yield fresh


def capture(name: str) -> str:
    content = (CAPTURES / name).read_bytes()
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode()


def read() -> Ruleset:
    """One read of a new collector."""
    return asyncio.run(Xtables(Settings(), Budget(1.0)).read())


def totals(ruleset: Ruleset) -> dict[tuple[str, str], Count]:
    """(family, table) -> all rules and chains."""
    rules: Counter[tuple[str, str]] = Counter()
    chains: Counter[tuple[str, str]] = Counter()
    for (family, table, _, _), count in ruleset.counts.items():
        rules[family, table] += count.rules
        chains[family, table] += count.chains
    return {key: Count(rules[key], chains[key]) for key in chains}


def saved(namespace: Namespace) -> dict[tuple[str, str, str], int]:
    """(family, table, chain) -> rules, as the administrator's tools show them."""
    return {
        (family, table, chain): number
        for family in FAMILIES
        for table, chains in counts.iptables_save(namespace.save("legacy", family)).items()
        for chain, number in chains.items()
    }


def assert_exact(ruleset: Ruleset, namespace: Namespace) -> None:
    """The record says of each table, owner and class what iptables-save shows."""
    shown = saved(namespace)
    tables = itertools.groupby(shown.items(), key=lambda item: item[0][:2])
    expected = {key: [number for _, number in group] for key, group in tables}
    assert totals(ruleset) == {key: Count(sum(n), len(n)) for key, n in expected.items()}
    by_owner = counts.by_owner((*where, number) for where, number in shown.items())
    assert ruleset.counts == {key: Count(*sums) for key, sums in by_owner.items()}
    for family in FAMILIES:
        assert ruleset.depths.get(family, ()) == depths(namespace.save("legacy", family))


def depths(save: str) -> tuple[int, ...]:
    """The depths that iptables-save text amounts to, found without the exporter's code."""
    walk = SavedWalk(save)
    for table in ("raw", "mangle", "nat"):
        if walk.enter(table, "PREROUTING") == "over":
            break
    return tuple(walk.found.values())


ENDS = {"ACCEPT": "table", "DNAT": "table", "DROP": "over", "REJECT": "over", "RETURN": "next"}


class SavedWalk:
    """A first packet's way through iptables-save text; only what the tests write is understood."""

    def __init__(self, save: str) -> None:
        self.found: dict[str, int] = {}
        self._checked = 0
        self._rules: dict[tuple[str, str], list[str]] = {}
        for part in re.split(r"^\*", save, flags=re.MULTILINE)[1:]:
            table, *lines = part.splitlines()
            for line in lines:
                if match := re.match(r"(?::|-A )(\S+) ?(.*)", line):
                    rules = self._rules.setdefault((table, match[1]), [])
                    rules += [match[2]] * line.startswith("-A")

    def enter(self, table: str, chain: str) -> str:
        """Walk a chain. Where the packet goes on: next in the caller, next table, or nowhere."""
        for rule in self._rules.get((table, chain), ()):
            rest = re.sub(r'-m comment --comment ("(\\.|[^"\\])*"|\S+) ?', "", rule)
            service = re.search(r"-[jg] KUBE-(?:SVC|SVL|EXT|FW)-(\S+)$", rest)
            if chain == "KUBE-SERVICES" and service:
                self.found.setdefault(service[1], self._checked)
            self._checked += 1
            rest = re.sub(r"-m conntrack --ctstate \S*NEW\S* ?", "", rest)
            if (always := re.fullmatch(r"-([jg]) (\S+)( --.*)?", rest)) is None:
                continue
            how, target, _ = always.groups()
            if target in ENDS:
                return ENDS[target]
            if (table, target) in self._rules:
                end = self.enter(table, target)
                if end != "next" or how == "g":
                    return end
        return "over" if self.found else "next"


# --- exact counts --------------------------------------------------------------------------------


@in_namespace
@pytest.mark.parametrize(
    "names",
    [
        ("small.v4.save",),
        ("medium.v4.save.gz",),
        ("small.v6.save",),
        ("small.v4.save", "small.v6.save"),
    ],
)
def test_captures_are_counted_as_iptables_save_shows_them(
    namespace: Namespace, names: tuple[str, ...]
) -> None:
    for name in names:
        namespace.restore(capture(name), "legacy", "ipv6" if ".v6." in name else "ipv4")
    ruleset = namespace.call(read)
    assert_exact(ruleset, namespace)
    assert {family for family, _ in ruleset.table_sizes} == {
        "ipv6" if ".v6." in name else "ipv4" for name in names
    }
    assert (ruleset.backend, ruleset.generation, ruleset.follow) == ("legacy", None, None)


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
def test_any_ruleset_is_counted_as_iptables_save_shows_it(family: Family) -> None:
    with Namespace() as namespace:

        @hypothesis_settings(
            max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        @given(strategies.iptables_save(family))
        def check(text: str) -> None:
            # Tables that the text does not name stay as an earlier example left them.
            namespace.restore(text, "legacy", family)
            assert_exact(namespace.call(read), namespace)

        check()


@in_namespace
def test_the_nft_backend_s_rules_are_not_counted(namespace: Namespace) -> None:
    namespace.restore(capture("medium.v4.save.gz"), "nft")
    with pytest.raises(AbsentError):
        namespace.call(read)
    namespace.restore(capture("small.v4.save"), "legacy")
    assert_exact(namespace.call(read), namespace)


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
def test_rules_of_others_before_the_services_add_to_their_depth(
    namespace: Namespace, family: Family
) -> None:
    ruleset = rulesets.iptables(rulesets.cluster(7, 2, family=family), family=family)
    namespace.restore(ruleset, "legacy", family)
    # What follows is the same for both families.
    namespace.restore(
        """\
*raw
:cali-PREROUTING - [0:0]
-A PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -i cali+ -j MARK --set-xmark 0x4/0x4
-A cali-PREROUTING -j MARK --set-xmark 0x0/0x8
COMMIT
*mangle
:cali-PREROUTING - [0:0]
-A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A PREROUTING -m conntrack --ctstate NEW -g cali-PREROUTING
-A PREROUTING -j DROP
-A cali-PREROUTING -j RETURN
-A cali-PREROUTING -j DROP
COMMIT
*nat
:ISTIO_INBOUND - [0:0]
-I PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
COMMIT
""",
        "legacy",
        family,
        flush=False,
    )
    found = namespace.call(read)
    # raw: the jump and 2; mangle: 2 and the first of its goal; nat: istio's and kube-proxy's jump.
    assert found.depths == {family: tuple(range(8, 15))}
    assert_exact(found, namespace)


@in_namespace
def test_every_known_owner_s_chains_are_passed_as_the_kernel_does(namespace: Namespace) -> None:
    namespace.restore(rulesets.iptables(rulesets.cluster(7, 2)), "legacy")
    namespace.restore(foreign(), "legacy", flush=False)
    found = namespace.call(read)
    assert_exact(found, namespace)
    assert min(found.depths["ipv4"]) > 1
    assert {owner for _, _, owner, _ in found.counts} > {"calico", "istio", "docker", "kube-proxy"}


# --- outcomes ------------------------------------------------------------------------------------


def without_net_admin() -> Ruleset:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for word in range(3):  # effective, permitted, inheritable
        sets[word] &= ~(1 << 12)  # CAP_NET_ADMIN
    assert libc.capset(header, sets) == 0
    return read()


@in_namespace
def test_without_tables_it_is_absent_and_no_table_comes_to_be(namespace: Namespace) -> None:
    with pytest.raises(AbsentError):
        namespace.call(read)
    for file in ("ip_tables_names", "ip6_tables_names"):
        assert namespace.run("cat", f"/proc/net/{file}") == ""


@in_namespace
def test_one_table_does_not_bring_about_others(namespace: Namespace) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy")
    assert namespace.call(read).counts == {("ipv4", "filter", "other", ""): Count(0, 3)}
    assert namespace.run("cat", "/proc/net/ip_tables_names") == "filter\n"
    assert namespace.run("cat", "/proc/net/ip6_tables_names") == ""


@in_namespace
def test_without_net_admin_it_is_denied(namespace: Namespace) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy")
    with pytest.raises(DeniedError, match="Operation not permitted"):
        namespace.call(without_net_admin)


@in_namespace
def test_without_net_admin_and_without_tables_it_is_absent(namespace: Namespace) -> None:
    with pytest.raises(AbsentError):
        namespace.call(without_net_admin)


# --- when it counts ------------------------------------------------------------------------------


class Purse(Budget):
    """A budget that is solvent when the test says so."""

    full = False

    def solvent(self) -> bool:
        return self.full


def reads(
    namespace: Namespace, *steps: Callable[[Xtables, Purse], None] | str
) -> list[tuple[Ruleset | Exception, float]]:
    """Results of a collector's reads, and when each began: one at first, one after each step.

    A step is input for iptables-legacy-restore --noflush, or a function.
    """

    def run() -> list[tuple[Ruleset | Exception, float]]:
        purse = Purse(1.0)
        collector = Xtables(Settings(), purse)
        found: list[tuple[Ruleset | Exception, float]] = []

        with asyncio.Runner() as runner:
            for step in ("", *steps):
                if callable(step):
                    step(collector, purse)
                else:
                    restore = ["iptables-legacy-restore", "-w", "--noflush"]
                    subprocess.run(restore, input=step.encode(), check=True)
                started = time.time()
                try:
                    found.append((runner.run(collector.read()), started))
                except ReadError as error:
                    found.append((error, started))
        return found

    return namespace.call(run)


def spend(_: Xtables, purse: Purse) -> None:
    purse.full = False


def earn(_: Xtables, purse: Purse) -> None:
    purse.full = True


def grow_old(collector: Xtables, _: Purse) -> None:
    collector._recount_at = time.monotonic()


def stay_young(collector: Xtables, _: Purse) -> None:
    collector._recount_at = time.monotonic() + 1000


ADD = "*filter\n-A INPUT\nCOMMIT\n"
MOVE = "*filter\n-D INPUT 1\n-A X\nCOMMIT\n"


def rules(result: Ruleset | Exception) -> dict[str, int]:
    assert isinstance(result, Ruleset)
    return {owner: count.rules for (_, _, owner, _), count in result.counts.items()}


@in_namespace
def test_a_changed_size_is_counted_only_when_the_budget_allows(namespace: Namespace) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy")
    (first, began), (poor, _), (rich, later) = reads(namespace, ADD, earn)
    assert isinstance(first, Ruleset)
    assert isinstance(poor, Ruleset)
    assert isinstance(rich, Ruleset)
    assert rules(first) == {"other": 0}
    assert first.counted_at >= began

    # The sizes are new, but the count and its time are the old ones.
    assert (poor.counts, poor.counted_at) == (first.counts, first.counted_at)
    entries, size = first.table_sizes["ipv4", "filter"]
    assert poor.table_sizes["ipv4", "filter"] == (entries + 1, size + 152)

    assert rules(rich) == {"other": 1}
    assert rich.counted_at >= later
    assert rich.table_sizes == poor.table_sizes


@in_namespace
def test_a_change_that_keeps_the_size_is_counted_when_the_count_is_old(
    namespace: Namespace,
) -> None:
    namespace.restore("*filter\n:cali-X - [0:0]\n-A INPUT\nCOMMIT\n", "legacy")
    moved = MOVE.replace("-A X", "-A cali-X")
    found = [result for result, _ in reads(namespace, earn, stay_young, moved, grow_old)]
    before = {"other": 1, "calico": 0}
    assert [rules(each) for each in found] == [before] * 4 + [{"other": 0, "calico": 1}]


@in_namespace
def test_an_old_count_stays_while_the_budget_is_spent(namespace: Namespace) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy")
    (first, _), (second, _) = reads(namespace, grow_old)
    assert first == second


@in_namespace
def test_a_count_that_failed_is_not_replaced_by_an_older_one(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.restore("*filter\nCOMMIT\n", "legacy")

    def break_counting(_: Xtables, purse: Purse) -> None:
        purse.full = True
        monkeypatch.setattr(xtables, "count", broken)

    def mend_counting(_: Xtables, purse: Purse) -> None:
        purse.full = True
        monkeypatch.undo()

    def broken(*_: object) -> Ruleset:
        raise BrokenError("not a table")

    found = [str(result) for result, _ in reads(namespace, break_counting, ADD, spend, earn)]
    assert found[2:] == [
        "not a table",
        "the last count failed, and the CPU budget does not allow another yet",
        "not a table",
    ]
    mended = reads(namespace, break_counting, ADD, mend_counting)[-1][0]
    assert rules(mended) == {"other": 2}


@in_namespace
def test_tables_that_were_away_are_counted_anew_though_their_sizes_are_the_old_ones(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.restore("*filter\n:cali-X - [0:0]\n-A INPUT\nCOMMIT\n", "legacy")

    def take_away(_: Xtables, purse: Purse) -> None:
        purse.full = False
        monkeypatch.setattr(xtables, "read_sizes", absent)

    def bring_back(_: Xtables, __: Purse) -> None:
        monkeypatch.undo()

    def absent(*_: object) -> None:
        raise AbsentError("no table")

    moved = MOVE.replace("-A X", "-A cali-X")
    found = [each for each, _ in reads(namespace, take_away, moved, bring_back)]
    assert rules(found[0]) == {"other": 1, "calico": 0}
    assert isinstance(found[1], AbsentError)
    assert rules(found[3]) == {"other": 0, "calico": 1}


@in_namespace
def test_a_large_table_s_memory_is_given_back_after_each_count(namespace: Namespace) -> None:
    namespace.restore(rulesets.iptables(rulesets.cluster(1000, 13)), "legacy")

    def growth() -> tuple[int, list[int]]:
        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        async def count_often() -> tuple[int, list[int]]:
            collector = Xtables(Settings(), Budget(1.0))
            size = (await collector.read()).table_sizes["ipv4", "nat"][1]
            before, after = resident(), []
            for _ in range(5):
                collector._counted = None
                collector._tried = False
                await collector.read()
                after.append(resident() - before)
            return size, after

        return asyncio.run(count_often())

    size, after = namespace.call(growth)
    assert size > 10 * MEBIBYTE
    assert max(after) < 4 * MEBIBYTE
