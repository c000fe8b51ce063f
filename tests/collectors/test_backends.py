"""Both backends of iptables in one namespace, each counted by its collector, against their save.

Neither the counting nor the sorting by owner and class shares code with the exporter.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab import counts, strategies
from tests.lab.namespace import Backend, Family, Namespace, requirements
from vipscope.budget import Budget
from vipscope.collectors.nftables import Nftables
from vipscope.collectors.xtables import Xtables
from vipscope.settings import Settings
from vipscope.snapshot import Ruleset

pytestmark = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

BACKENDS: tuple[Backend, ...] = ("nft", "legacy")
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
Texts = dict[tuple[Backend, Family], str]


def read() -> list[Ruleset]:
    """One read by a new collector of each backend, in the present network namespace."""

    async def both() -> list[Ruleset]:
        collectors = Nftables(Settings(), Budget(1.0)), Xtables(Settings(), Budget(1.0))
        try:
            return [await each.read() for each in collectors]
        finally:
            for each in collectors:
                await each.close()

    return asyncio.run(both())


def told(ruleset: Ruleset) -> counts.OwnerCounts:
    return {key: (count.rules, count.chains) for key, count in ruleset.counts.items()}


def saved(namespace: Namespace, backend: Backend) -> counts.OwnerCounts:
    """What iptables-save and ip6tables-save of a backend print."""
    return counts.by_owner(
        (family, table, chain, rules)
        for family in FAMILIES
        for table, chains in counts.iptables_save(namespace.save(backend, family)).items()
        for chain, rules in chains.items()
    )


def listed(namespace: Namespace) -> counts.OwnerCounts:
    """What nft lists."""
    found = counts.nft_json(namespace.run("nft", "-j", "list", "ruleset"))
    names: dict[str, Family] = {"ip": "ipv4", "ip6": "ipv6"}
    return counts.by_owner(
        (names[family], table, chain, rules)
        for (family, table, chain), rules in found.rules.items()
    )


def texts() -> st.SearchStrategy[Texts]:
    """Text for each of the four restore commands, each for tables of its own choice."""
    return st.fixed_dictionaries(
        {
            (backend, family): strategies.iptables_save(family)
            for backend, family in itertools.product(BACKENDS, FAMILIES)
        }
    )


@settings(max_examples=25)
@given(texts())
def test_any_rulesets_side_by_side_are_each_counted_as_save_shows_them(written: Texts) -> None:
    with Namespace() as namespace:
        for (backend, family), text in written.items():
            # With all base chains of its tables: iptables-nft-save shows those that are not there.
            namespace.restore(text, backend, family)
        rulesets = namespace.call(read)
        assert [ruleset.backend for ruleset in rulesets] == list(BACKENDS)
        for ruleset, backend in zip(rulesets, BACKENDS, strict=True):
            assert told(ruleset) == saved(namespace, backend)
        assert told(rulesets[0]) == listed(namespace)
