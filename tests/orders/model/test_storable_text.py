"""Reasons that fit their column."""

import pytest

from orders.model.storable_text import MAX_REASON_CHARACTERS, storable_text


@pytest.mark.parametrize(
    ("reason", "said"),
    [("", "no reason given"), ("a\ud800b", "a?b"), ("  x \n", "x"), ("y" * 9999, "y" * MAX_REASON_CHARACTERS)],
    ids=["empty", "surrogate", "blanks", "long"],
)
def test_any_reason_can_be_stored(reason: str, said: str) -> None:
    """
    A handler may say what it likes: the reason fits its column.
    """
    assert storable_text(reason) == said
