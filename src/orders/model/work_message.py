"""The message that asks a worker to work an order: parsed from an event's body, never trusted further."""

from typing import Literal
from uuid import UUID

import msgspec

from orders.model import events
from orders.model.error_text import first_line
from orders.model.errors import OrdersError
from orders.model.storable_text import storable_text

MAX_EVENT_BYTES = 64 << 10  # an event of ours has some hundred bytes
MOST_DELIVERIES = 1000  # of a message that is never answered; then the broker gives it up
MAX_TYPE_CHARACTERS = 100  # of a foreign event's type, in the error's text

InvalidKind = Literal["malformed", "oversized"]


class WorkMessage(msgspec.Struct, frozen=True):
    """An event that asks for work on its order."""

    order_id: UUID
    event_id: UUID
    version: int  # of the order, as the event says


class InvalidMessage(OrdersError):
    """The message is no event that asks for work."""

    def __init__(self, kind: InvalidKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def parse(body: bytes, size: int) -> WorkMessage:
    """Parse a message's body; raise InvalidMessage if it is no event that asks for work.

    `size`: bytes of the whole body, which may be more than `body` has.
    """
    if size > MAX_EVENT_BYTES:
        raise InvalidMessage("oversized", f"{size} bytes are no event of ours: {MAX_EVENT_BYTES} is the most")
    try:
        envelope = events.open_envelope(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessage("malformed", f"not an event: {first_line(error)}") from None
    if envelope.type not in events.REQUIRED:
        type_ = storable_text(envelope.type)[:MAX_TYPE_CHARACTERS]
        raise InvalidMessage("malformed", f"an event of type {type_!r} asks for no work")
    if envelope.subject != str(envelope.data.order_id):
        raise InvalidMessage("malformed", "its subject is not its order")
    return WorkMessage(envelope.data.order_id, envelope.id, envelope.data.version)
