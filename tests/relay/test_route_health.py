"""Routes that failed: probed alone, widened, open again."""

import pytest

from relay.backoff import backoff_seconds
from relay.message import Route
from relay.route_health import WIDE_OPEN, RouteHealth

HERE, THERE = Route("orders", "here"), Route("", "there")


def test_a_failed_route_closes_alone() -> None:
    """
    Rows of a failed route are parked; other routes stay open and take all they are given.
    """
    health = RouteHealth(longest_seconds=2.0)

    health.failed(HERE, 100.0, "nacked")

    assert not health.is_open(HERE)
    assert health.is_open(THERE)
    assert health.allowance([HERE, THERE], 100.0, 500) == {THERE: 500}
    assert health.report() == {"orders/here": "nacked"}


def test_a_probe_is_one_key_after_the_pause() -> None:
    """
    When the pause is over one key is let out, and `next_try` says when that is.
    """
    health = RouteHealth(longest_seconds=2.0)
    assert health.next_try(100.0) is None
    health.failed(HERE, 100.0, "nacked")

    due = health.next_try(100.0)

    assert due is not None
    assert 100.0 < due < 101.0
    assert health.allowance([HERE], due, 500) == {HERE: 1}


def test_success_widens_until_clear() -> None:
    """
    Each success lets out eight times as many keys, until the route is open again.
    """
    health = RouteHealth(longest_seconds=2.0)
    health.failed(HERE, 100.0, "nacked")

    widths = []
    while not health.is_open(HERE):
        health.passed(HERE)
        widths.append(health.allowance([HERE], 100.0, WIDE_OPEN)[HERE])

    assert widths == [8, 64, WIDE_OPEN]
    assert health.next_try(100.0) is None


def test_a_route_that_is_due_is_no_reason_to_hurry() -> None:
    """
    A route that passed once and went quiet, or whose keys another relay delivered, is due for as long as nothing comes:
    only those that are due later say when to look again.
    """
    health = RouteHealth(longest_seconds=2.0)
    health.failed(HERE, 100.0, "nacked")
    health.passed(HERE)
    health.failed(THERE, 100.0, "nacked")
    due = health.next_try(100.0)
    assert due is not None
    assert due > 100.0

    assert health.next_try(due) is None
    assert health.allowance([HERE, THERE], due, 500) == {HERE: 8, THERE: 1}


def test_one_claim_at_a_time_tries_a_route() -> None:
    """
    While a claim waits for the answer of a route, no other probes it, nor takes it for open since nothing waits for it.
    """
    health = RouteHealth(longest_seconds=2.0)
    health.failed(HERE, 100.0, "unanswered")
    due = health.next_try(100.0)
    assert due is not None

    with health.being_tried({HERE, THERE}), health.being_tried({THERE}):
        assert health.allowance([HERE, THERE], due, 500) == {THERE: 500}
        health.forget_all_but([], due)
        assert not health.is_open(HERE)

    assert health.allowance([HERE], due, 500) == {HERE: 1}
    health.forget_all_but([], due)
    assert health.is_open(HERE)


def test_a_route_that_nothing_waits_for_is_forgotten() -> None:
    """
    What waited has been delivered, perhaps by another relay: the route is open, once its pause is over.
    """
    health = RouteHealth(longest_seconds=2.0)
    health.failed(HERE, 100.0, "nacked")
    health.failed(THERE, 100.0, "nacked")

    health.forget_all_but([THERE], 100.0)
    assert set(health.report()) == {str(HERE), str(THERE)}  # what waits for it is perhaps being written down
    health.forget_all_but([THERE], 103.0)
    assert set(health.report()) == {str(THERE)}
    health.forget_all_but([], 103.0)
    assert health.report() == {}
    assert health.is_open(HERE)


def test_failing_again_starts_over() -> None:
    """
    A failure in the widening is one probe again, and the pauses grow to the longest and no further.
    """
    health = RouteHealth(longest_seconds=2.0)
    health.failed(HERE, 0.0, "nacked")
    health.passed(HERE)
    for _ in range(40):
        health.failed(HERE, 0.0, "nacked")

    due = health.next_try(0.0)

    assert due is not None
    assert 1.0 <= due <= 2.0
    assert health.allowance([HERE], due, 500) == {HERE: 1}


def test_passing_an_open_route_changes_nothing() -> None:
    """
    A route without a failure has nothing to clear.
    """
    health = RouteHealth(longest_seconds=2.0)

    health.passed(HERE)

    assert health.is_open(HERE)
    assert str(THERE) == "(default)/there"


def test_backoff() -> None:
    """
    Doubled each time up to the longest; chance takes off up to half, and never adds anything.
    """
    assert [round(backoff_seconds(n, 0.1, 1.0, 0.0), 3) for n in (1, 2, 3, 9)] == [0.1, 0.2, 0.4, 1.0]
    assert [round(backoff_seconds(n, 0.1, 1.0, 1.0), 3) for n in (1, 2, 3, 9)] == [0.05, 0.1, 0.2, 0.5]
    assert all(0.05 <= backoff_seconds(1, 0.1, 1.0) <= 0.1 for _ in range(50))


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
def test_no_pause_is_longer_than_the_longest(draw: float) -> None:
    """
    What a setting or a document calls the longest pause is the longest, whatever chance says.
    """
    assert max(backoff_seconds(tries, 0.1, 2.0, draw) for tries in range(1, 100)) <= 2.0
