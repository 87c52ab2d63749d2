import pytest

from orders.api.preconditions import LONGEST_WAIT_SECONDS, matches, tag_of, wait_of


def test_equal_bodies_have_equal_tags() -> None:
    """
    A tag stands for bytes.
    """
    assert tag_of(b"x") == tag_of(b"x") != tag_of(b"y")


@pytest.mark.parametrize(
    ("given", "expected"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False), ("", False)],
)
def test_if_none_match(given: str, *, expected: bool) -> None:
    """
    A tag is found among several, weak or strong, and `*` is any.
    """
    assert expected is matches(given, '"a"')


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("wait=5", 5),
        ("respond-async, wait=5", 5),
        ("WAIT = 5", 5),
        ('wait="5"', 5),
        ("wait=5; x=y", 5),
        ("wait=4000", LONGEST_WAIT_SECONDS),
        ("wait=0", 0),
        ("wait", None),
        ("wait=-1", None),
        ("wait=x", None),
        ("await=5", None),
        ("wait=" + "9" * 5000, None),
        ("", None),
    ],
)
def test_prefer(given: str, expected: int | None) -> None:
    """
    A preference that is not understood is ignored, as RFC 7240 asks.
    """
    assert expected == wait_of(given)
