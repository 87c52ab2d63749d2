"""What is told to others about an order: CloudEvents 1.0 in JSON, encoded once and then carried untouched.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import msgspec

from orders.model.ids import text_of, uuid7
from orders.model.order import Order, Status

EXCHANGE = "orders"
CONTENT_TYPE = "application/cloudevents+json"
SOURCE = "/orders"

EventType = Literal["order.placed", "order.redriven", "order.done", "order.failed", "order.cancelled"]

# These have to reach a queue, for an order is worked because of them; the others are for whoever subscribes.
REQUIRED: frozenset[EventType] = frozenset({"order.placed", "order.redriven"})


class Data(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an event says of its order."""

    order_id: UUID
    status: Status
    version: int
    customer_id: str | None = None
    currency: str | None = None
    total_minor: int | None = None
    reference: str | None = None
    failure_reason: str | None = None


def data_of(order: Order, *, status: Status, version: int, reason: str | None = None) -> Data:
    """Return what an event says of an order that has come to this status and version."""
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
    """A CloudEvents 1.0 envelope."""

    id: UUID
    type: str
    subject: str
    time: datetime
    data: Data
    specversion: Literal["1.0"]
    source: str
    datacontenttype: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact about an order, sealed and addressed: one outbox row."""

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
    """Seal an event about an order: a new id, the time, and the body that consumers will get byte for byte."""
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


open_envelope = msgspec.json.Decoder(Envelope).decode
