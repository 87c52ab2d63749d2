"""The order: `Order`, which a handler gets and the API returns, and `NewOrder`, which a client sends.

`Order`, `Line` and `Status` are public API.
A valid `NewOrder` fits its columns: these types reject every value that PostgreSQL would reject.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from orders.model.currencies import Currency
from orders.model.errors import InvalidOrder

__all__ = ["Line", "Order", "Status"]

Status = Literal["placed", "processing", "done", "failed", "cancelled"]
TERMINAL: frozenset[Status] = frozenset({"done", "failed", "cancelled"})

# No control characters and no line or paragraph separators. The lookahead is for Python, whose `$` also matches before
# a final newline; in the JSON Schema of the OpenAPI document it changes nothing.
_PRINTABLE = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$(?!\n)"
_LARGEST_BIGINT = 2**63 - 1

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=_PRINTABLE)]
Text = Annotated[str, Meta(max_length=200, pattern=_PRINTABLE)]
Quantity = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Amount = Annotated[int, Meta(ge=0, le=_LARGEST_BIGINT)]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line of an order, as the client sent it."""

    #: The client's name of the article, 1 to 64 characters.
    sku: Name
    #: Pieces, 1 to 2**31 - 1.
    quantity: Quantity
    #: The price of one piece in minor units of the order's currency (cents for EUR), at least 0.
    unit_price_minor: Amount
    #: Up to 200 characters; None if the client gave none.
    description: Text | None = None


Lines = Annotated[list[Line], Meta(min_length=1, max_length=1000)]


class NewOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An order as a client sends it."""

    customer_id: Name
    currency: Currency
    lines: Lines
    reference: Text | None = None

    def total_minor(self) -> int:
        """Return the sum of the lines in minor units; raise InvalidOrder if it does not fit 64 bits."""
        total = sum(line.quantity * line.unit_price_minor for line in self.lines)
        if total > _LARGEST_BIGINT:
            raise InvalidOrder("lines", f"the total of the lines, {total}, is larger than {_LARGEST_BIGINT}")
        return total


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An order, as a handler gets it and the API returns it.

    An order that was placed by the tutorial's route `POST /order/place` has no customer, currency, lines, total and
    reference. Every other order has all of them but the reference, which is optional.
    """

    #: A UUIDv7, made by the api that took the order. It never changes.
    order_id: UUID
    #: placed -> processing -> done | failed; placed -> cancelled; failed -> placed by a redrive. A handler always gets
    #: `processing`.
    status: Status
    #: 1 when the order is placed, higher by one for each change of its status.
    version: int
    #: The client's name of its customer, 1 to 64 characters; None for an order of the tutorial's route.
    customer_id: str | None
    #: ISO 4217 code; None for an order of the tutorial's route.
    currency: str | None
    #: The lines as JSON text, an array of objects with the fields of `Line`:
    #: `msgspec.json.decode(order.lines, type=list[Line])`. The text is `null` for an order of the tutorial's route.
    lines: msgspec.Raw
    #: The sum of quantity x unit price over all lines, in minor units of the currency (cents for EUR), computed when
    #: the order was placed; None for an order of the tutorial's route.
    total_minor: int | None
    #: The client's own reference, up to 200 characters; None if it gave none.
    reference: str | None
    #: How often a worker has claimed the order, this claim included: crashes and retries count, redrives do not reset
    #: it. 0 before the first claim.
    attempts: int
    #: Why the order failed, up to 500 characters: what the handler said by Refuse or Retry, of any other error its
    #: class and a reference, or a reason of ours. None unless the status is `failed`.
    failure_reason: str | None
    #: When the order was placed, in UTC, by the clock of the api.
    created_at: datetime
    #: When the order was last placed, claimed, postponed, ended or redriven, in UTC: by the database's clock, but for
    #: a placement and a cancellation, which have the api's.
    updated_at: datetime
    #: When the order became done or failed, by the database's clock, or cancelled, by the api's; in UTC. None before.
    finished_at: datetime | None

    @property
    def idempotency_key(self) -> str:
        """The key for calls that other systems must act on once: the same in each attempt and redrive."""
        return str(self.order_id)
