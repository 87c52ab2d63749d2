"""Which trace an order belongs to."""

import re

import pytest

from orders.model.traceparent import continue_trace

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_valid_trace_is_continued() -> None:
    """
    The client's trace stays as it came.
    """
    assert continue_trace(VALID) == VALID


@pytest.mark.parametrize(
    "received",
    [
        None,
        "",
        VALID.upper(),
        VALID + "\n",
        VALID.replace("00-4", "01-4"),
        "00-" + "0" * 32 + VALID[35:],
        VALID[:36] + "0" * 16 + VALID[52:],
    ],
    ids=["none", "empty", "upper case", "newline", "another version", "trace of zeros", "span of zeros"],
)
def test_otherwise_a_new_trace_starts(received: str | None) -> None:
    """
    Without a valid trace each order starts its own, which is not sampled.
    """
    first, second = continue_trace(received), continue_trace(received)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", first)
    assert first != second
    assert continue_trace(first) == first
