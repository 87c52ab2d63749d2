"""What an order is, and what a valid one looks like.

A value that gets through here fits its column: nothing that PostgreSQL would refuse is let in.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from orders.model.currencies import Currency
from orders.model.errors import InvalidOrder

Status = Literal["placed", "processing", "done", "failed", "cancelled"]
TERMINAL: frozenset[Status] = frozenset({"done", "failed", "cancelled"})

# No control characters and no line or paragraph separators. The lookahead is for Python, whose `$` also matches before
# a final newline; in the JSON Schema of the OpenAPI document it says nothing new.
_PRINTABLE = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$(?!\n)"
_LARGEST_BIGINT = 2**63 - 1

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=_PRINTABLE)]
Text = Annotated[str, Meta(max_length=200, pattern=_PRINTABLE)]
Quantity = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Amount = Annotated[int, Meta(ge=0, le=_LARGEST_BIGINT)]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line of an order: `quantity` pieces at `unit_price_minor` each, in minor units of the order's currency."""

    sku: Name
    quantity: Quantity
    unit_price_minor: Amount
    description: Text | None = None


Lines = Annotated[list[Line], Meta(min_length=1, max_length=1000)]


class NewOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An order as a client asks for it."""

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
    """An order as it is answered and handed to a handler; the tutorial's have neither customer nor lines."""

    order_id: UUID
    status: Status
    version: int
    customer_id: str | None
    currency: str | None
    lines: msgspec.Raw  # as they were stored: JSON, or null
    total_minor: int | None
    reference: str | None
    attempts: int
    failure_reason: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None

    @property
    def idempotency_key(self) -> str:
        """What to tell others who must do something for this order once: the same in every attempt and redrive."""
        return str(self.order_id)
