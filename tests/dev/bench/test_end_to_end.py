"""What counts as a rate that can be sustained."""

import pytest

from dev.bench.end_to_end import bounded

RATE = 100.0


@pytest.mark.parametrize(
    ("waiting", "is_bounded"),
    [
        ([0, 0, 0, 0, 0, 0], True),
        ([100] * 6, True),  # a second's orders
        ([300, 300, 200, 50, 50, 50], True),  # a start that was late
        ([20, 40, 60, 80, 101, 120], False),  # it grows
        ([0, 0, 0, 0, 0, 101], False),
        ([], False),  # nobody looked
    ],
)
def test_bounded(waiting: list[int], is_bounded: bool) -> None:
    """
    A backlog is bounded if no more than a second's orders wait in the last third.
    """
    assert bounded([(float(at), float(each)) for at, each in enumerate(waiting, 1)], RATE) is is_bounded
