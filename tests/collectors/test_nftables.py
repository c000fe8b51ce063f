"""nf_tables counted and followed, against what `nft` and `iptables-save` print of it."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collectors.nobody import as_nobody
from tests.lab import counts, rulesets, strategies, uml
from tests.lab.foreign import foreign
from tests.lab.namespace import Namespace, requirements
from vipscope.budget import Budget
from vipscope.collectors import nftables
from vipscope.collectors.nftables import Nftables
from vipscope.netlink.nf_tables import Reader
from vipscope.netlink.nft_mirror import MOST_TABLES, Mirror, printable
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, Count, DeniedError, Ruleset

pytestmark = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

CAPTURES = Path(__file__).parent.parent / "captures"
SMALLEST_BUFFER = 4096
FAMILIES = {"ip": "ipv4", "ip6": "ipv6"}


def capture(name: str) -> str:
    path = CAPTURES / name
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()


async def read_once(chosen: Settings) -> Ruleset:
    collector = Nftables(chosen, Budget(1.0))
    try:
        return await collector.read()
    finally:
        await collector.close()


def read(*, follow: bool = True) -> Ruleset:
    """One read in the present network namespace."""
    return asyncio.run(read_once(replace(Settings(), follow=follow)))


def oracle() -> counts.NftCounts:
    """What nft prints in the present network namespace."""
    argv = ["nft", "-j", "list", "ruleset"]
    return counts.nft_json(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def by_table(ruleset: Ruleset) -> dict[tuple[str, str], tuple[int, int]]:
    """(family, table) -> (rules, chains), whoever owns them."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for (family, table, _, _), count in ruleset.counts.items():
        rules, chains = sums.get((family, table), (0, 0))
        sums[family, table] = rules + count.rules, chains + count.chains
    return sums


def expected_by_table(found: counts.NftCounts) -> dict[tuple[str, str], tuple[int, int]]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for (family, table, _), rules in found.rules.items():
        key = FAMILIES.get(family, family), table
        before, chains = sums.get(key, (0, 0))
        sums[key] = before + rules, chains + 1
    return sums


def expected_elements(found: counts.NftCounts) -> dict[tuple[str, str, str], int]:
    sums: Counter[tuple[str, str, str]] = Counter()
    for (family, table, name), elements in found.elements.items():
        if table == "kube-proxy":
            shown = "affinity" if name.startswith("affinity-") else name
            sums[FAMILIES.get(family, family), table, shown] += elements
    return dict(sums)


def assert_exact(ruleset: Ruleset, found: counts.NftCounts) -> None:
    assert by_table(ruleset) == expected_by_table(found)
    by_owner = counts.by_owner(
        (FAMILIES.get(family, family), table, chain, rules)
        for (family, table, chain), rules in found.rules.items()
    )
    assert ruleset.counts == {key: Count(*sums) for key, sums in by_owner.items()}
    assert dict(ruleset.set_elements) == expected_elements(found)


def read_and_ask() -> tuple[Ruleset, counts.NftCounts]:
    return read(), oracle()


def class_rules(ruleset: Ruleset, family: str, table: str) -> Mapping[str, int]:
    """Rules of kube-proxy's classes."""
    return {
        kind: count.rules
        for (of, where, owner, kind), count in ruleset.counts.items()
        if (of, where, owner) == (family, table, "kube-proxy")
    }


@pytest.mark.parametrize(
    "files", [("iptables/small.v4.save", "iptables/small.v6.save"), ("iptables/medium.v4.save.gz",)]
)
def test_counts_of_a_captured_iptables_node_are_those_of_nft_and_iptables_save(
    files: Sequence[str],
) -> None:
    with Namespace() as namespace:
        for file, family in zip(files, ("ipv4", "ipv6"), strict=False):
            namespace.restore(capture(file), family=family)  # type: ignore[arg-type]
        ruleset, found = namespace.call(read_and_ask)
        assert_exact(ruleset, found)
        for family in ("ipv4", "ipv6")[: len(files)]:
            saved = counts.iptables_save(namespace.save("nft", family))  # type: ignore[arg-type]
            for table, chains in saved.items():
                assert by_table(ruleset)[family, table] == (sum(chains.values()), len(chains))


def test_rules_are_sorted_into_the_classes_of_their_chains() -> None:
    with Namespace() as namespace:
        namespace.restore(capture("iptables/small.v4.save"))
        ruleset = namespace.call(read)
        saved = counts.iptables_save(namespace.save("nft", "ipv4"))["nat"]
    prefixes = {
        "service": "KUBE-SVC-",
        "external": "KUBE-EXT-",
        "endpoint": "KUBE-SEP-",
    }
    found = class_rules(ruleset, "ipv4", "nat")
    for kind, prefix in prefixes.items():
        expected = sum(rules for chain, rules in saved.items() if chain.startswith(prefix))
        assert found[kind] == expected > 0
    assert found["services"] == saved["KUBE-SERVICES"]
    assert found["nodeports"] == saved["KUBE-NODEPORTS"]
    assert found["masquerade"] == saved["KUBE-MARK-MASQ"] + saved["KUBE-POSTROUTING"]
    base = sum(saved[chain] for chain in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"))
    assert ruleset.counts["ipv4", "nat", "other", ""].rules == base


@pytest.mark.parametrize("file", ["nftables/small.nft", "nftables/medium.nft.gz"])
def test_counts_of_a_captured_nftables_node_are_those_of_nft(file: str) -> None:
    with Namespace() as namespace:
        namespace.nft(capture(file))
        ruleset, found = namespace.call(read_and_ask)
    assert_exact(ruleset, found)
    assert ruleset.set_elements["ipv4", "kube-proxy", "service-ips"] > 0
    # Each Service's packet passes firewall-check, then the same two rules before the one look-up.
    assert set(ruleset.depths["ipv4"]) == {4}
    assert len(ruleset.depths["ipv4"]) == ruleset.set_elements["ipv4", "kube-proxy", "service-ips"]


@settings(max_examples=25)
@given(strategies.nft_ruleset())
def test_counts_of_any_native_ruleset_are_those_of_nft(script: str) -> None:
    # As kube-proxy's own table its sets and maps are counted too.
    with Namespace() as namespace:
        namespace.nft(script.replace(" t-0 ", " kube-proxy "))
        assert_exact(*namespace.call(read_and_ask))


def expected_depths(save: str) -> list[int]:
    """Depths in table nat where only KUBE-SERVICES is jumped to without conditions."""
    lines = save[save.index("*nat") :].split("COMMIT")[0].splitlines()
    rules = [line.split("]", 1)[-1].split("-A ", 1)[-1] for line in lines if "-A " in line]
    before = [rule for rule in rules if rule.startswith("PREROUTING ")]
    jump = next(n for n, rule in enumerate(before) if rule.endswith("-j KUBE-SERVICES"))
    depths, seen = [], set()
    for position, rule in enumerate(r for r in rules if r.startswith("KUBE-SERVICES ")):
        target = rule.split()[-1].rpartition("-")
        if target[0] in ("KUBE-SVC", "KUBE-SVL", "KUBE-EXT", "KUBE-FW") and target[2] not in seen:
            seen.add(target[2])
            depths.append(jump + 1 + position)
    return depths


def test_depth_is_each_services_place_in_the_order_of_rules() -> None:
    with Namespace() as namespace:
        namespace.restore(capture("iptables/small.v4.save"))
        ruleset = namespace.call(read)
        expected = expected_depths(namespace.save("nft", "ipv4"))
    assert list(ruleset.depths["ipv4"]) == expected
    assert len(expected) > 30
    assert "ipv6" not in ruleset.depths


def test_depth_counts_what_others_put_before_kube_proxys_jump() -> None:
    conditional = "-A PREROUTING -d 192.0.2.1/32 -j DROP-IT"
    followed = '-A PREROUTING -m comment --comment "x" -m conntrack --ctstate NEW,RELATED -j FIRST'
    script = f"""*raw
-A PREROUTING -p udp -j NOTRACK
COMMIT
*nat
:FIRST - [0:0]
:SECOND - [0:0]
:DROP-IT - [0:0]
{conditional}
{followed}
-A FIRST -s 192.0.2.7/32 -j RETURN
-A FIRST -j SECOND
-A SECOND -j MARK --set-xmark 0x1/0x1
-A SECOND -j RETURN
-A SECOND -j ACCEPT
-A DROP-IT -j MARK --set-xmark 0x1/0x1
COMMIT
"""
    with Namespace() as namespace:
        namespace.restore(script)
        namespace.restore(rulesets.iptables(rulesets.cluster(4, 1)), flush=False)
        ruleset = namespace.call(read)
    # raw 1; PREROUTING 2 and the jump; FIRST 2; SECOND 2, its third rule is never reached.
    assert ruleset.depths["ipv4"] == (8, 9, 10, 11)


def test_services_behind_an_accept_of_everything_are_not_reached() -> None:
    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(4, 1)))
        namespace.run("iptables-nft", "-t", "nat", "-I", "PREROUTING", "-j", "ACCEPT")
        assert namespace.call(read).depths == {}


def test_foreign_chains_are_counted_under_their_owners() -> None:
    with Namespace() as namespace:
        namespace.restore(foreign(), flush=False)
        ruleset, found = namespace.call(read_and_ask)
    assert_exact(ruleset, found)
    owners = {owner for _, _, owner, _ in ruleset.counts}
    assert {"calico", "cilium", "flannel", "cni", "istio", "docker", "kubelet"} <= owners


class Live:
    """A collector that follows, in the present namespace, driven as the runner drives it."""

    def __init__(self, chosen: Settings, share: float) -> None:
        self.budget = Budget(share)
        self.collector = Nftables(chosen, self.budget)

    async def read(self) -> Ruleset:
        before = self.collector.cpu_seconds
        ruleset = await self.collector.read()
        self.budget.spend(self.collector.cpu_seconds - before)
        return ruleset

    async def until_exact(self, seconds: float) -> Ruleset:
        """The first record that is exact; fails when none is within the time."""
        found, deadline = oracle(), time.monotonic() + seconds
        while True:
            ruleset = await self.read()
            if by_table(ruleset) == expected_by_table(found) or time.monotonic() > deadline:
                assert_exact(ruleset, found)
                assert time.time() - ruleset.counted_at < seconds
                return ruleset
            await self.collector.due()


def live(
    scenario: Callable[[Live], object], chosen: Settings | None = None, share: float = 1.0
) -> Callable[[], object]:
    """A function that runs an async scenario with a new collector; for `Namespace.call`."""

    async def run() -> object:
        watched = Live(chosen or Settings(), share)
        try:
            return await scenario(watched)  # type: ignore[misc]
        finally:
            await watched.collector.close()

    return lambda: asyncio.run(run())


def shell(script: str, command: str = "nft -f -", *, check: bool = True) -> None:
    subprocess.run(command.split(), input=script, text=True, check=check, capture_output=True)


def owner() -> subprocess.Popen[str]:
    """A process whose tables die with it."""
    return subprocess.Popen(
        ["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


EDITS = (
    "add rule ip kube-proxy services counter",
    "insert rule ip kube-proxy nat-prerouting counter accept",
    "flush chain ip kube-proxy masquerading",
    "add chain ip kube-proxy service-NEW\nadd rule ip kube-proxy service-NEW drop",
    "add element ip kube-proxy cluster-ips { 192.0.2.1, 192.0.2.2 }",
    "delete element ip kube-proxy cluster-ips { 10.96.0.1 }",
    "flush set ip kube-proxy hairpin-connections",
    "add element ip kube-proxy no-endpoint-services { 192.0.2.1 . tcp . 80 : goto reject-chain }",
    "add set ip kube-proxy more { type ipv4_addr; }\nadd element ip kube-proxy more { 192.0.2.1 }",
    "delete table ip6 kube-proxy",
    "add table inet x\nadd chain inet x c { type filter hook input priority 0; }",
    "delete table ip kube-proxy",
    "flush ruleset",
)
RENAME = "add table ip nat\nadd chain ip nat KUBE-SVC-X\nrename chain ip nat KUBE-SVC-X KUBE-SEP-X"


def test_each_kind_of_change_is_followed_without_a_full_read() -> None:
    async def scenario(watched: Live) -> Mapping[str, int]:
        ruleset = await watched.read()
        for edit in EDITS:
            shell(edit)
            ruleset = await watched.until_exact(2)
        assert ruleset.follow is not None
        return dict(ruleset.follow.resyncs)

    with Namespace() as namespace:
        namespace.nft(capture("nftables/small.nft"))
        assert namespace.call(live(scenario)) == {"start": 1}


def test_a_renamed_chain_is_found() -> None:
    async def scenario(watched: Live) -> None:
        await watched.read()
        shell("rename chain ip nat KUBE-SVC-A KUBE-SEP-A")
        ruleset = await watched.until_exact(2)
        assert class_rules(ruleset, "ipv4", "nat") == {"endpoint": 1}

    with Namespace() as namespace:
        namespace.nft("table ip nat { chain KUBE-SVC-A { counter; }; }")
        namespace.call(live(scenario))


@settings(max_examples=12)
@given(
    edits=st.lists(st.sampled_from([*EDITS, RENAME]), min_size=1, max_size=8), pause=st.booleans()
)
def test_any_sequence_of_changes_ends_in_exact_counts(edits: list[str], pause: bool) -> None:
    async def scenario(watched: Live) -> None:
        await watched.read()
        for edit in edits:
            # Some fail, for an earlier one removed what they name: then nothing is committed.
            shell(edit, check=False)
            if pause:
                await watched.until_exact(3)
        await watched.until_exact(3)

    with Namespace() as namespace:
        namespace.nft(capture("nftables/small.nft"))
        namespace.call(live(scenario))


@pytest.mark.parametrize(
    "edit",
    [
        "flush chain ip nat KUBE-SERVICES",
        "delete element ip kube-proxy service-ips { 10.96.0.1 . tcp . 443 }",
    ],
)
def test_depths_are_not_older_than_the_generation_that_they_are_told_with(
    edit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(watched: Live) -> tuple[int, int]:
        first = await watched.read()
        kernel_tables = Reader.tables

        def edit_and_tell(reader: Reader) -> list[tuple[int, str]]:
            # A commit that comes after the depths were walked, and is told without more to read.
            monkeypatch.undo()
            shell(edit)
            return kernel_tables(reader)

        monkeypatch.setattr(Reader, "tables", edit_and_tell)
        second = await watched.read()
        assert first.generation is not None
        assert second.generation == first.generation + 1
        return len(first.depths["ipv4"]), len(second.depths.get("ipv4", ()))

    with Namespace() as namespace:
        if "kube-proxy" in edit:
            namespace.nft(capture("nftables/small.nft"))
        else:
            namespace.restore(rulesets.iptables(rulesets.cluster(6, 1)))
        before, after = cast("tuple[int, int]", namespace.call(live(scenario)))
    assert after == (before - 1 if "element" in edit else 0)


def test_commits_are_counted_by_the_writers_name() -> None:
    async def scenario(watched: Live) -> None:
        first = await watched.read()
        for number in range(5):
            shell(f"add table ip t{number}")
        shell("add chain ip t0 c\nadd rule ip t0 c counter\nadd rule ip t0 c counter")
        text = "*nat\n-A PREROUTING -j RETURN\nCOMMIT\n"
        shell(text, "iptables-nft-restore --noflush")
        ruleset = await watched.until_exact(2)
        assert ruleset.follow is not None
        assert ruleset.follow.last_change is not None
        assert abs(ruleset.follow.last_change - time.time()) < 60
        assert first.generation is not None
        assert ruleset.generation == first.generation + sum(ruleset.follow.transactions.values())
        assert ruleset.follow.transactions["nft"] == 6
        assert ruleset.follow.transactions["iptables-nft-re"] >= 1
        assert ruleset.follow.changes["rule", "add"] == 3
        assert ruleset.follow.changes["chain", "add"] == 2

    with Namespace() as namespace:
        namespace.call(live(scenario))


def storm(seconds: float) -> list[threading.Thread]:
    """Three writers at once for some seconds, in the present namespace."""
    services = rulesets.cluster(40, 3)
    changed = services[7].without(services[7].endpoints[0])
    flips = [
        rulesets.iptables_flip(services, changed, seed=1),
        rulesets.iptables_flip(services, services[7], seed=2),
    ]
    native = ["add table ip other\nadd chain ip other c\nadd rule ip other c counter"]
    flush = ["*nat\nCOMMIT\n", rulesets.iptables(services)]
    end = time.monotonic() + seconds

    def write(command: str, texts: Sequence[str]) -> None:
        turn = 0
        while time.monotonic() < end:
            # May fail: the writers take away each other's chains.
            subprocess.run(
                command.split(), input=texts[turn % len(texts)].encode(), check=False,
                capture_output=True,
            )  # fmt: skip
            turn += 1

    writers = [
        threading.Thread(target=write, args=("iptables-nft-restore --noflush", flips)),
        threading.Thread(target=write, args=("nft -f -", native)),
        threading.Thread(target=write, args=("iptables-nft-restore", flush)),
    ]
    for writer in writers:
        writer.start()
    return writers


@pytest.mark.parametrize("share", [1.0, 0.02], ids=["ample budget", "default budget"])
def test_counts_are_exact_two_seconds_after_a_storm_that_overran_the_buffer(share: float) -> None:
    async def scenario(watched: Live) -> Mapping[str, int]:
        await watched.read()
        writers = storm(4)
        while any(writer.is_alive() for writer in writers):
            await watched.collector.due()
            await watched.read()
        ruleset = await watched.until_exact(2)
        assert ruleset.follow is not None
        return dict(ruleset.follow.resyncs)

    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(40, 3)))
        small = replace(Settings(), receive_buffer=SMALLEST_BUFFER)
        resyncs = namespace.call(live(scenario, small, share))
    assert resyncs["overrun"] >= 1  # type: ignore[index]


def test_overrun_commits_are_still_counted() -> None:
    async def scenario(watched: Live) -> int:
        first = await watched.read()
        for _ in range(3):
            shell(rulesets.iptables(rulesets.cluster(60, 3)), "iptables-nft-restore")
        ruleset = await watched.until_exact(2)
        assert ruleset.follow is not None
        assert first.generation is not None
        assert ruleset.generation is not None
        assert ruleset.follow.resyncs["overrun"] >= 1
        counted = sum(ruleset.follow.transactions.values())
        return ruleset.generation - first.generation - counted

    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(1, 1)))
        small = replace(Settings(), receive_buffer=SMALLEST_BUFFER)
        assert namespace.call(live(scenario, small)) == 0


def test_remembered_clients_that_cannot_be_counted_again_are_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nftables, "EXPIRING", 0.2)
    table = """
    table ip kube-proxy {
      set cluster-ips { type ipv4_addr; elements = { 10.0.0.1 }; }
      set affinity-X { type ipv4_addr; flags dynamic, timeout; timeout 1h; }
    }
    """

    async def scenario(watched: Live) -> None:
        fixed, fleeting = ("ipv4", "kube-proxy", "cluster-ips"), ("ipv4", "kube-proxy", "affinity")
        shell(table)
        assert (await watched.read()).set_elements == {fixed: 1, fleeting: 0}
        watched.budget.spend(1000.0)
        await asyncio.sleep(0.5)
        assert (await watched.read()).set_elements == {fixed: 1}
        watched.budget.spend(-2000.0)
        assert (await watched.read()).set_elements == {fixed: 1, fleeting: 0}

    with Namespace() as namespace:
        namespace.call(live(scenario))


def test_after_a_read_that_failed_nothing_older_is_told_however_poor_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: Reader) -> None:
        raise BrokenError("not a table")

    async def scenario(watched: Live) -> None:
        await watched.read()
        watched.budget.spend(1000.0)
        await asyncio.sleep(nftables.QUIET)
        monkeypatch.setattr(Reader, "tables", broken)
        shell("add chain ip nat KUBE-SEP-X")
        with pytest.raises(BrokenError):
            await watched.read()
        monkeypatch.undo()
        shell("add chain ip nat KUBE-SEP-Y")
        assert_exact(await watched.read(), oracle())

    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(2, 2)))
        namespace.call(live(scenario))


def test_a_program_that_changed_comes_with_the_time_of_its_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(watched: Live) -> None:
        source = watched.collector.source
        watched.collector.sources.wanted = True
        await watched.read()
        for program in source.programs.values():
            program.take_changes()
        seen = []
        depths = Mirror.depths

        def look(mirror: Mirror, reader: Reader) -> Mapping[str, tuple[int, ...]]:
            if any(program.changed for program in source.programs.values()):
                seen.append(source.committed)
            return depths(mirror, reader)

        monkeypatch.setattr(Mirror, "depths", look)
        shell("add table ip other")
        await watched.collector.due()
        await watched.read()
        began = time.time()
        shell("flush chain ip nat KUBE-SERVICES")
        await watched.collector.due()
        await watched.read()
        assert seen
        assert all(committed is not None and committed >= began for committed in seen)

    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(2, 2)))
        namespace.call(live(scenario))


def test_what_changed_while_notifications_were_lost_has_no_time() -> None:
    async def scenario(watched: Live) -> None:
        watched.collector.sources.wanted = True
        await watched.read()
        shell("add chain ip nat KUBE-SEP-X")
        await watched.until_exact(2)
        assert watched.collector.source.committed is not None
        shell(rulesets.iptables(rulesets.cluster(60, 3)), "iptables-nft-restore")
        ruleset = await watched.until_exact(2)
        assert ruleset.follow is not None
        assert ruleset.follow.resyncs["overrun"] >= 1
        assert watched.collector.source.committed is None

    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(rulesets.cluster(1, 1)))
        small = replace(Settings(), receive_buffer=SMALLEST_BUFFER)
        namespace.call(live(scenario, small))


def test_a_table_that_dies_with_its_owner_is_noticed() -> None:
    async def scenario(watched: Live) -> None:
        process = owner()
        assert process.stdin is not None
        process.stdin.write("add table ip owned { flags owner; }\nadd chain ip owned c\n")
        process.stdin.flush()
        while "owned" not in {table for _, table in by_table(await watched.read())}:
            await watched.collector.due()
        process.stdin.close()
        process.wait()
        await watched.until_exact(2)

    with Namespace() as namespace:
        namespace.call(live(scenario))


def test_polling_reads_only_what_moved() -> None:
    async def scenario(watched: Live) -> Mapping[str, int]:
        await watched.read()
        unchanged = await watched.read()
        assert unchanged.follow is not None
        assert dict(unchanged.follow.resyncs) == {"start": 1}
        shell("add rule ip kube-proxy services counter")
        await watched.until_exact(1)
        shell("flush ruleset")
        ruleset = await watched.until_exact(1)
        assert ruleset.follow is not None
        return dict(ruleset.follow.resyncs)

    with Namespace() as namespace:
        namespace.nft(capture("nftables/small.nft"))
        resyncs = namespace.call(live(scenario, replace(Settings(), follow=False)))
    assert resyncs == {"start": 1, "periodic": 2}


def test_polling_without_budget_keeps_the_old_count_with_its_age() -> None:
    async def scenario(watched: Live) -> None:
        first = await watched.read()
        watched.budget.spend(1000)
        shell("flush ruleset")
        second = await watched.read()
        assert second.counts == first.counts
        assert second.counted_at == first.counted_at

    with Namespace() as namespace:
        namespace.nft(capture("nftables/small.nft"))
        namespace.call(live(scenario, replace(Settings(), follow=False)))


def test_affinity_elements_that_expire_unnotified_are_counted_down() -> None:
    script = """table ip kube-proxy {
        set affinity-X { type ipv4_addr; flags dynamic,timeout; timeout 5s; }
    }
    add element ip kube-proxy affinity-X { 192.0.2.1, 192.0.2.2 }
    """

    async def scenario(watched: Live) -> list[int]:
        key = "ipv4", "kube-proxy", "affinity"
        first = (await watched.read()).set_elements[key]
        nftables.EXPIRING = 1.0
        await asyncio.sleep(5.5)
        return [first, (await watched.read()).set_elements[key]]

    with Namespace() as namespace:
        namespace.nft(script)
        assert namespace.call(live(scenario)) == [2, 0]


def test_both_backends_side_by_side_are_told_apart() -> None:
    with Namespace() as namespace:
        namespace.restore(capture("iptables/small.v4.save"), backend="legacy")
        namespace.restore(foreign("calico"), flush=False)
        assert_exact(*namespace.call(read_and_ask))


@pytest.mark.parametrize("follow", [True, False])
def test_without_privilege_the_outcome_is_denied(follow: bool) -> None:
    with pytest.raises(DeniedError, match="NET_ADMIN"):
        as_nobody(lambda: read(follow=follow))


def read_in_uml() -> tuple[str, bool]:
    try:
        read()
    except AbsentError as error:
        loaded = "nf_tables" in Path("/proc/modules").read_text()
        return str(error), loaded
    return "read", True


@pytest.mark.skipif(uml.available() is not None, reason=uml.available() or "")
def test_a_kernel_without_nf_tables_is_absent_and_its_module_is_not_loaded() -> None:
    assert uml.call(read_in_uml, modules=()) == (
        "nf_tables is not in this kernel",
        False,
    )


def test_nothing_is_read_twice_while_nothing_changes() -> None:
    async def scenario(watched: Live) -> bool:
        first = await watched.read()
        again = [await watched.read() for _ in range(3)]
        assert all(each.counted_at > first.counted_at for each in again)
        return all(each.follow == first.follow for each in again)

    with Namespace() as namespace:
        namespace.nft(capture("nftables/small.nft"))
        assert namespace.call(live(scenario)) is True


def test_a_chain_whose_name_is_no_utf8_is_counted() -> None:
    def scenario() -> tuple[Ruleset, int]:
        name = b"c\xfe"
        for argv in ([b"-N", name], [b"-A", name, b"-j", b"RETURN"]):
            subprocess.run([b"iptables-nft", b"-t", b"nat", *argv], check=True)
        saved = subprocess.run(["iptables-nft-save"], check=True, capture_output=True).stdout
        return read(), saved.count(b"\n-A ")

    with Namespace() as namespace:
        ruleset, rules = namespace.call(scenario)
    assert by_table(ruleset)["ipv4", "nat"] == (rules, 1)
    assert rules == 1


def test_names_from_the_kernel_become_labels_that_can_be_encoded() -> None:
    assert printable("odd\udcff") == "odd\\xff"
    assert printable("naïve") == "naïve"


def test_many_tables_do_not_make_many_series() -> None:
    scripts = [f"add table inet x{n}\nadd chain inet x{n} c" for n in range(MOST_TABLES + 5)]
    with Namespace() as namespace:
        namespace.nft("\n".join(scripts))
        namespace.restore(rulesets.iptables(rulesets.cluster(3, 1)), flush=False)
        ruleset, found = namespace.call(read_and_ask)
    tables = by_table(ruleset)
    assert len({table for _, table in tables}) == MOST_TABLES + 1
    assert tables["inet", ""] == (0, 5 + 3)
    assert tables["ipv4", "nat"] == expected_by_table(found)["ipv4", "nat"]


def test_reader_tells_a_chain_that_is_not_there_as_empty() -> None:
    def scenario() -> list[int]:
        reader = Reader()
        try:
            return list(reader.count_rules(2, "nat", ["no-such-chain"]))
        finally:
            reader.close()

    with Namespace() as namespace:
        assert namespace.call(scenario) == [0]
