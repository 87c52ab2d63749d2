"""What can go wrong, by name. A class's docstring is the message."""


class OrdersError(Exception):
    """Something went wrong."""

    def __str__(self) -> str:
        return super().__str__() or (type(self).__doc__ or "").strip()


class InvalidOrder(OrdersError):
    """The order is not valid."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field


class OrderNotFound(OrdersError):
    """Order not found"""


class Unauthorized(OrdersError):
    """The API key is not valid."""


class Forbidden(OrdersError):
    """The API key may not do this."""


class KeyReused(OrdersError):
    """This Idempotency-Key was used before with another body."""


class TooLate(OrdersError):
    """The order is past the point where it could be cancelled."""


class Refused(OrdersError):
    """The database refuses this row, and would refuse it again."""


class TooManyRequests(OrdersError):
    """This client has too many requests of this kind in hand."""


class Overloaded(OrdersError):
    """Too many requests are waiting for the database."""


class Unavailable(OrdersError):
    """The database does not answer in time."""


class StartupError(OrdersError):
    """The process cannot start."""
