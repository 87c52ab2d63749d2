"""Read the times and time spans of a command line: 2026-11-23T18:00:00Z, 15m ago, 90d."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}


def parse_span(text: str, units: str) -> timedelta:
    """Return the span that a whole number and one of these unit letters denote, as 90d; a year has 365 days.

    Raises ValueError on any other text, and on a span that reaches back beyond the year 1.
    """
    match = re.fullmatch(f"([0-9]{{1,9}})([{units}])", text)
    try:
        if match is not None:
            span = timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
            datetime.now(UTC) - span  # raises OverflowError
            return span
    except OverflowError:
        pass
    raise ValueError(f"{text!r} is no time span: give a number and one of {', '.join(units)}, as 90{units[-1]}")


def parse_moment(text: str) -> datetime:
    """Return the moment that an RFC 3339 time (UTC without an offset) or a time ago (90s, 15m, 2h, 1d) denotes.

    Raises ValueError on any other text.
    """
    with suppress(ValueError):
        return datetime.now(UTC) - parse_span(text, "smhd")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: give 2026-11-23T18:00:00Z, or 15m for 15 minutes ago") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
