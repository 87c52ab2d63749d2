"""A rate is kept in portions."""

import pytest

from relay.pace import Pace


def test_without_a_rate_nothing_waits() -> None:
    """
    No rate: whole batches, one after the other.
    """
    pace = Pace(0)

    pace.took(500, now=1.0)

    assert pace.portion(500) == 500
    assert pace.wait(1.0) == 0


@pytest.mark.parametrize(("rate", "portion"), [(10_000, 500), (100, 25), (3, 1), (0.1, 1)])
def test_portions(rate: float, portion: int) -> None:
    """
    A claim has a quarter of a second's rows, at least one and at most a batch.
    """
    assert portion == Pace(rate).portion(500)


def test_the_rate_is_kept() -> None:
    """
    Each portion is paid for before the next, and time that passed without rows is not saved up.
    """
    pace = Pace(100)

    pace.took(25, now=10.0)
    assert pace.wait(10.0) == 0.25
    assert pace.wait(10.25) == 0
    pace.took(25, now=20.0)

    assert pace.wait(20.0) == 0.25
