"""The ids are UUIDv7, and ascend whatever the clock does."""

import time
from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID, uuid4

import pytest

from orders.model import ids
from orders.model.ids import lowest_id, seconds_of, text_of, uuid7


def test_layout() -> None:
    """
    An id has the version and variant of RFC 9562, the time in front, and random bits at its end.
    """
    before = time.time_ns() // 1_000_000
    one, other = uuid7(), uuid7()
    after = time.time_ns() // 1_000_000

    assert (one.version, one.variant) == (7, RFC_4122)
    assert before <= one.int >> 80 <= after
    assert one.int & (1 << 62) - 1 != other.int & (1 << 62) - 1
    assert UUID(text_of(one)) == one


def test_ascending_while_the_clock_stands_still_or_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    More ids than the counter holds within a millisecond, and a clock that steps back, leave them in order.
    """
    readings = [1_800_000_000_000] * 5_000 + [1_799_999_000_000] * 100 + [1_800_000_001_000]
    monkeypatch.setattr(ids, "_last", 0)
    clock = iter(readings)
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 1_000_000)
    made = [uuid7() for _ in readings]

    assert made == sorted(set(made))
    assert {each.version for each in made} == {7}
    assert made[0].int >> 80 == readings[0]
    assert made[-1].int >> 80 == readings[-1]


def test_text() -> None:
    """
    An id's text is the one that everybody writes.
    """
    for value in [UUID(int=0), UUID(int=2**128 - 1), uuid4(), uuid7()]:
        assert text_of(value) == str(value)


def test_time_and_id() -> None:
    """
    An id tells when it was made, and a moment which ids came no earlier.
    """
    moment = datetime(2026, 12, 1, 12, 30, 15, 250_000, tzinfo=UTC)

    assert seconds_of(lowest_id(moment)) == moment.timestamp()
    assert lowest_id(datetime(1966, 12, 1, tzinfo=UTC)) == UUID(int=0)
    assert (
        lowest_id(datetime.now(UTC) - timedelta(seconds=1))
        < uuid7()
        < lowest_id(datetime.now(UTC) + timedelta(hours=1))
    )
