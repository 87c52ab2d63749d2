"""A rate is kept by small claims."""

import pytest

from relay.rate_limit import RateLimit


def test_without_a_rate_nothing_waits() -> None:
    """
    No rate: whole batches, one after the other.
    """
    rate_limit = RateLimit(0)

    rate_limit.record(500, now=1.0)

    assert rate_limit.limit(500) == 500
    assert rate_limit.wait(1.0) == 0


@pytest.mark.parametrize(("rate", "limit"), [(10_000, 500), (100, 25), (3, 1), (0.1, 1)])
def test_limits(rate: float, limit: int) -> None:
    """
    A claim has a quarter of a second's rows, at least one and at most a batch.
    """
    assert limit == RateLimit(rate).limit(500)


def test_the_rate_is_kept() -> None:
    """
    Each claim is paid for before the next, and time that passed without rows is not saved up.
    """
    rate_limit = RateLimit(100)

    rate_limit.record(25, now=10.0)
    assert rate_limit.wait(10.0) == 0.25
    assert rate_limit.wait(10.25) == 0
    rate_limit.record(25, now=20.0)

    assert rate_limit.wait(20.0) == 0.25
