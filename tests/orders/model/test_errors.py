"""What errors say."""

from orders.model.errors import InvalidOrder, OrderNotFound


def test_the_docstring_is_the_message() -> None:
    """
    An error says what it was given, and without that what its class means.
    """
    assert str(OrderNotFound()) == "Order not found"
    assert str(OrderNotFound("not here")) == "not here"


def test_an_invalid_order_names_the_field() -> None:
    """
    The field is told beside the detail.
    """
    error = InvalidOrder("lines", "too large")
    assert (error.field, str(error)) == ("lines", "too large")
