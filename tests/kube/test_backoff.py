"""Pauses: longer each time, never short, never the same for all."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from vipscope.kube.backoff import Backoff


@given(st.lists(st.floats(0, 1000)), st.integers())
def test_a_pause_is_never_short_and_never_endless(served: list[float], seed: int) -> None:
    backoff = Backoff(draw=random.Random(seed))
    assert all(0.8 <= backoff.delay(each) <= 60.0 for each in served)


def test_pauses_double_up_to_the_cap_and_begin_anew_after_good_service() -> None:
    backoff = Backoff()
    steps = [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    for step in steps:
        assert step <= backoff.delay(119.9) <= 2 * step
    assert backoff.delay(120.0) <= 1.6
    assert 1.6 <= backoff.delay(0.0) <= 3.2


def test_a_thousand_nodes_do_not_come_back_at_once() -> None:
    delays = sorted(Backoff(draw=random.Random(node)).delay(1e6) for node in range(1000))
    busiest = max(sum(start <= each < start + 0.1 for each in delays) for start in delays)
    assert busiest < 200
