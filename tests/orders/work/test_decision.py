"""What becomes of an order after a run of its handler, for every outcome there is."""

from typing import get_args

import pytest

from orders.database.finish_orders import Finished
from orders.work.decision import (
    FIRST_RETRY_SECONDS,
    MAX_RETRY_SECONDS,
    Decision,
    EndOrder,
    MarkPoison,
    OrderEnded,
    RetryLater,
    RunAgain,
    decide,
    retry_seconds,
)
from orders.work.runner import (
    ChildDied,
    Committed,
    HandlerFailed,
    HandlerRefused,
    RunOutcome,
    Succeeded,
    TransientFailure,
)

MOST = 5
FINISHED = Finished("done", 0.5)

CASES: list[tuple[RunOutcome, int, Decision]] = [
    (Succeeded(), 0, EndOrder()),
    (Succeeded(), MOST - 1, EndOrder()),
    (Committed(FINISHED), 0, OrderEnded(FINISHED)),
    (Committed(None), 0, OrderEnded(None)),
    (HandlerRefused("no stock"), 0, EndOrder("no stock", "refused", "Refuse")),
    (HandlerFailed("busy", 7), 0, RetryLater(7, "busy")),
    (HandlerFailed("busy", -7), 0, RetryLater(0, "busy")),
    (HandlerFailed("busy", 7, "Retry"), MOST - 2, RetryLater(7, "busy", "Retry")),
    (HandlerFailed("busy", 7, "Retry"), MOST - 1, EndOrder("busy (attempt 5 of 5)", "exhausted", "Retry")),
    (
        HandlerFailed("KeyError: the key", None, "KeyError", "KeyError, reference 0"),
        MOST - 1,
        EndOrder(
            "KeyError, reference 0 (attempt 5 of 5)", "exhausted", "KeyError", "KeyError: the key (attempt 5 of 5)"
        ),
    ),
    (HandlerFailed("busy"), MOST + 3, EndOrder("busy (attempt 9 of 5)", "exhausted")),
    # An outage spends nobody's budget.
    (TransientFailure("gone"), 0, RunAgain("gone")),
    (TransientFailure("gone"), MOST - 1, RunAgain("gone")),
    (ChildDied("killed"), 0, MarkPoison("killed")),
    (ChildDied("killed"), MOST - 1, MarkPoison("killed")),
]


@pytest.mark.parametrize(("outcome", "failures", "step"), CASES)
def test_next_step(outcome: RunOutcome, failures: int, step: Decision) -> None:
    """
    Only the handler's own failures count, and only the last of them ends the order.
    """
    assert decide(outcome, failures, MOST) == step


def test_every_outcome_has_its_step() -> None:
    """
    No outcome was forgotten in this table.
    """
    assert {type(outcome) for outcome, _, _ in CASES} == set(get_args(RunOutcome))


def test_a_single_attempt() -> None:
    """
    Where one attempt is all there is, the first failure is the last.
    """
    assert decide(HandlerFailed("busy"), 0, 1) == EndOrder("busy (attempt 1 of 1)", "exhausted")


@pytest.mark.parametrize("failures", [0, 1, 3, 7, 8, 30, 500])
def test_a_retry_waits_longer_each_time(failures: int) -> None:
    """
    Where the handler has no wish, the pause doubles up to the longest, and at most half of it is taken off.
    """
    step = decide(HandlerFailed("busy"), failures, 1000)
    assert isinstance(step, RetryLater)
    pause = min(FIRST_RETRY_SECONDS * 2**failures, MAX_RETRY_SECONDS)

    for seconds in (step.seconds, retry_seconds(failures)):
        assert pause / 2 <= seconds <= pause
