"""Reads that a commit comes between are made again, and given up in the end."""

from __future__ import annotations

import subprocess

import pytest

from tests.lab.namespace import Namespace, requirements
from vipscope.netlink.nf_tables import Reader
from vipscope.netlink.nfnetlink import InterruptedDumpError
from vipscope.netlink.nft_excerpt import ATTEMPTS, consistently
from vipscope.snapshot import BrokenError

pytestmark = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))


class Writer:
    """Reads the tables, and lets somebody commit meanwhile so many times."""

    def __init__(self, commits: int, *, interrupted: bool = False) -> None:
        self.reads = 0
        self._commits = commits
        self._interrupted = interrupted

    def __call__(self, reader: Reader) -> list[tuple[int, str]]:
        self.reads += 1
        found = reader.tables()
        if self.reads <= self._commits:
            if self._interrupted:
                raise InterruptedDumpError
            subprocess.run(["nft", "add", "table", "ip", f"t{self.reads}"], check=True)
        return found


def reads(commits: int, interrupted: bool) -> tuple[list[tuple[int, str]], int]:
    writer = Writer(commits, interrupted=interrupted)
    return consistently(writer), writer.reads


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_is_read_is_of_one_generation(interrupted: bool) -> None:
    with Namespace() as namespace:
        assert namespace.call(reads, 0, interrupted) == ([], 1)
    with Namespace() as namespace:
        found, times = namespace.call(reads, 2, interrupted)
    assert times == 3
    assert found == ([] if interrupted else [(2, "t1"), (2, "t2")])


def test_a_ruleset_that_never_stands_still_is_broken() -> None:
    with (
        Namespace() as namespace,
        pytest.raises(BrokenError, match=f"the ruleset changed during each of {ATTEMPTS} reads"),
    ):
        namespace.call(reads, ATTEMPTS, False)
