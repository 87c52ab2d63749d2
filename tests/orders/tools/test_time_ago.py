"""Times and spans of a command line are read as a user writes them, and everything else is an error that says how."""

from datetime import UTC, datetime, timedelta

import pytest

from orders.tools.time_ago import parse_moment, parse_span


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)), ("15m", timedelta(minutes=15)), ("2h", timedelta(hours=2)),
        ("1d", timedelta(days=1)), ("12w", timedelta(weeks=12)), ("2y", timedelta(days=730)), ("0d", timedelta()),
    ],
)  # fmt: skip
def test_a_span_is_a_number_and_a_unit(text: str, span: timedelta) -> None:
    """
    Each unit that the caller names is read, and no other.
    """
    assert parse_span(text, "smhdwy") == span
    with pytest.raises(ValueError, match="is no time span"):
        parse_span(text, "smhdwy".replace(text[-1], ""))


@pytest.mark.parametrize("text", ["", "d", "1", "-1d", "1.5d", "1 d", "1dd", "²d", "٣d", "9999y", "999999999y", "1d\n"])
def test_other_text_is_no_span(text: str) -> None:
    """
    A text that is no whole number with a unit, or reaches back beyond the calendar, is an error.
    """
    with pytest.raises(ValueError, match="is no time span"):
        parse_span(text, "smhdwy")


def test_a_moment_is_a_time_ago_or_a_time() -> None:
    """
    A time ago counts from now; a time without an offset is UTC.
    """
    assert abs(datetime.now(UTC) - timedelta(minutes=15) - parse_moment("15m")) < timedelta(seconds=5)
    assert parse_moment("2026-11-23T18:00:00Z") == datetime(2026, 11, 23, 18, tzinfo=UTC)
    assert parse_moment("2026-11-23T18:00:00") == datetime(2026, 11, 23, 18, tzinfo=UTC)
    assert parse_moment("2026-11-23T18:00:00+02:00") == datetime(2026, 11, 23, 16, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "soon", "2w", "2y", "15 m", "2026-13-01", "999999999d"])
def test_other_text_is_no_moment(text: str) -> None:
    """
    The error says what to write.
    """
    with pytest.raises(ValueError, match="is no time: give 2026-11-23T18:00:00Z, or 15m"):
        parse_moment(text)
