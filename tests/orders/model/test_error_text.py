"""Errors as text."""

import pytest

from orders.model.error_text import first_line, message_of


class Speechless(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


@pytest.mark.parametrize(
    ("error", "message", "line"),
    [
        (ValueError("one\ntwo"), "one\ntwo", "one"),
        (ValueError("\n one\n"), "\n one\n", "one"),
        (ValueError(), "", "ValueError"),
        (ValueError("a\ud800b"), "a?b", "a?b"),
        (Speechless(), "", "Speechless"),
    ],
    ids=["two lines", "blanks", "no message", "surrogate", "speechless"],
)
def test_any_error_has_a_text(error: Exception, message: str, line: str) -> None:
    """
    Every error has a message that can be logged, and a first line that is not empty.
    """
    assert message_of(error) == message
    assert first_line(error) == line
