"""The retry budget: what it lets through at once, and in the long run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.core.retry_budget import REFILL_S, BudgetSettings, RetryBudget


def taken(budget: RetryBudget, now: float, asked: int) -> int:
    """How many of those asked for are granted."""
    return sum(budget.take(now) for _ in range(asked))


def test_everything_at_work_may_go_on_elsewhere_once() -> None:
    budget = RetryBudget(BudgetSettings(burst=100, ratio=0.2), 0)
    assert taken(budget, 0, 150) == 100


def test_sequences_pay_in_and_so_does_time() -> None:
    budget = RetryBudget(BudgetSettings(burst=100, ratio=0.25), 0)
    taken(budget, 0, 100)
    for _ in range(40):
        budget.began(0)
    assert taken(budget, 0, 40) == 10
    assert taken(budget, REFILL_S / 2, 100) == 50
    assert budget.left(10 * REFILL_S) == 100, "never more than the burst"


def test_none_at_all_can_be_asked_for() -> None:
    budget = RetryBudget(BudgetSettings(burst=0, ratio=10), 0)
    budget.began(1)
    assert not budget.take(1000)


@given(
    steps=st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=300),
    burst=st.integers(0, 50),
    ratio=st.floats(0, 2),
)
def test_it_never_grants_more_than_it_was_given(steps: list[tuple[float, bool]], burst: int, ratio: float) -> None:
    budget, now, began, retries = RetryBudget(BudgetSettings(burst, ratio), 0), 0.0, 0, 0
    for wait, retry in steps:
        now += wait
        if retry:
            retries += budget.take(now)
        else:
            budget.began(now)
            began += 1
    assert retries <= burst + ratio * began + burst * now / REFILL_S + 1e-6
