"""Events about orders: CloudEvents 1.0 in JSON, encoded once and then carried byte for byte.

`Envelope`, `Data`, `EventType` and `open_envelope` are public API.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import msgspec

from orders.model.ids import text_of, uuid7
from orders.model.order import Order, Status

__all__ = ["Data", "Envelope", "EventType", "open_envelope"]

EXCHANGE = "orders"
CONTENT_TYPE = "application/cloudevents+json"
SOURCE = "/orders"

EventType = Literal["order.placed", "order.redriven", "order.done", "order.failed", "order.cancelled"]

# These events have to reach a queue, since a worker acts on them; the others are for subscribers.
REQUIRED: frozenset[EventType] = frozenset({"order.placed", "order.redriven"})


class Data(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The order as of the event. In JSON, a field that is None is absent."""

    #: The order's id, also the envelope's `subject`.
    order_id: UUID
    #: The status to which this event brought the order.
    status: Status
    #: The order's version at that moment. Of two events of an order, the one with the higher version is newer.
    version: int
    #: As in `Order`; None for an order of the tutorial's route.
    customer_id: str | None = None
    #: ISO 4217 code; None for an order of the tutorial's route.
    currency: str | None = None
    #: The order's total in minor units of its currency; None for an order of the tutorial's route.
    total_minor: int | None = None
    #: The client's own reference; None if it gave none.
    reference: str | None = None
    #: Why the order failed; None in every event but `order.failed`.
    failure_reason: str | None = None


def data_of(order: Order, *, status: Status, version: int, reason: str | None = None) -> Data:
    """Return the data of an event by which an order came to this status and version; `reason`: why it failed."""
    return Data(
        order_id=order.order_id,
        status=status,
        version=version,
        customer_id=order.customer_id,
        currency=order.currency,
        total_minor=order.total_minor,
        reference=order.reference,
        failure_reason=reason,
    )


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event as a consumer gets it: a CloudEvents 1.0 envelope. Each field is one of the specification's."""

    #: A UUIDv7, unique for each event, equal to the AMQP message id. A repeated delivery has the same.
    id: UUID
    #: An `EventType`, equal to the AMQP routing key. A plain string: later versions may have more types.
    type: str
    #: The order's id.
    subject: str
    #: When the event was made, in UTC, by the clock of the process that made it.
    time: datetime
    #: The order as of the event.
    data: Data
    #: The version of CloudEvents.
    specversion: Literal["1.0"]
    #: The context of the event: `/orders`.
    source: str
    #: The media type of `data`, `application/json`; None if the sender left it out.
    datacontenttype: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An encoded event with its address: one row of the outbox. `traceparent` is a W3C trace context."""

    event_id: UUID
    order_id: UUID
    type: EventType
    body: bytes
    traceparent: str

    @property
    def required(self) -> bool:
        """Whether the event has to reach a queue."""
        return self.type in REQUIRED


_encode = msgspec.json.Encoder().encode


def event_of(type_: EventType, data: Data, traceparent: str) -> Event:
    """Make an event about an order: a new id, the time, and the body that consumers get byte for byte."""
    event_id = uuid7()
    envelope = Envelope(
        id=event_id,
        type=type_,
        subject=text_of(data.order_id),
        time=datetime.now(UTC),
        data=data,
        specversion="1.0",
        source=SOURCE,
        datacontenttype="application/json",
    )
    return Event(event_id=event_id, order_id=data.order_id, type=type_, body=_encode(envelope), traceparent=traceparent)


#: Decode a body to an `Envelope`; raises msgspec.DecodeError, UnicodeDecodeError or RecursionError if it is none.
open_envelope = msgspec.json.Decoder(Envelope).decode
