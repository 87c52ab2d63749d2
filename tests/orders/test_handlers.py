"""What a handler may say."""

from datetime import timedelta
from typing import Any

import pytest

from orders.handlers import LONGEST_AFTER_SECONDS, Retry


@pytest.mark.parametrize(
    ("after", "seconds"),
    [(None, None), (7, 7), (0.5, 0.5), (-1, 0), (1e13, LONGEST_AFTER_SECONDS)],
)
def test_a_retry_waits_for_a_sensible_time(after: float | None, seconds: float | None) -> None:
    """
    A retry comes now at the earliest, and in 30 days at the latest.
    """
    assert Retry("busy", after=after).after == seconds


@pytest.mark.parametrize("after", ["7", timedelta(seconds=7), float("inf"), float("-inf"), float("nan"), 10**400])
def test_what_is_no_number_of_seconds_is_refused(after: Any) -> None:
    """
    A wrong pause is an error in the handler's own line, not in the worker.
    """
    with pytest.raises((TypeError, ValueError, OverflowError)):
        Retry("busy", after=after)
