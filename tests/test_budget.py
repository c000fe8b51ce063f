"""The CPU budget, under a clock of the test's own."""

from __future__ import annotations

from vipscope.budget import BURST, Budget


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_starts_with_a_burst_so_that_the_first_read_is_not_delayed() -> None:
    budget = Budget(0.02, Clock())
    budget.spend(BURST - 0.001)
    assert budget.solvent()


def test_an_overdrawn_budget_is_solvent_again_when_its_share_of_the_time_has_earned_it() -> None:
    clock = Clock()
    budget = Budget(0.02, clock)
    budget.spend(BURST + 0.5)
    assert not budget.solvent()
    clock.now += 24.9
    assert not budget.solvent()
    clock.now += 0.2
    assert budget.solvent()


def test_idle_time_saves_up_no_more_than_a_burst() -> None:
    clock = Clock()
    budget = Budget(1.0, clock)
    clock.now += 3600
    budget.spend(BURST + 0.001)
    assert not budget.solvent()


def test_reads_that_ask_first_cost_no_more_than_the_share_over_time() -> None:
    clock = Clock()
    budget = Budget(0.02, clock)
    spent = 0.0
    for _ in range(3600):
        clock.now += 1
        if budget.solvent():
            budget.spend(0.7)
            spent += 0.7
    assert spent <= 0.02 * 3600 + BURST + 0.7
    assert spent >= 0.02 * 3600 - 0.7
