"""The events for others to read: a JSON Schema for each, and an AsyncAPI document of them all.

`python -m orders.tools.catalogue docs` writes the files; a test holds them against this module and what is published.
"""

import sys
from pathlib import Path
from typing import Any, get_args

import msgspec

from orders.model.events import CONTENT_TYPE, EXCHANGE, REQUIRED, SOURCE, EventType
from orders.model.order import Status

# What each event tells, and the status that its order has come to.
MEANINGS: dict[EventType, tuple[Status, str]] = {
    "order.placed": ("placed", "An order was accepted, and waits to be worked."),
    "order.redriven": ("placed", "An order that had failed was brought back, and waits to be worked again."),
    "order.done": ("done", "The work of an order is done. Terminal."),
    "order.failed": ("failed", "An order failed, for a reason. Terminal, unless it is redriven."),
    "order.cancelled": ("cancelled", "An order was cancelled before its work began. Terminal."),
}

Json = dict[str, Any]


def schema_of(event_type: EventType) -> Json:
    """Return the JSON Schema of an event's body. Fields may be added to it later: let a consumer ignore what is new."""
    status, meaning = MEANINGS[event_type]
    data: Json = {
        "type": "object",
        "required": ["order_id", "status", "version"],
        "properties": {
            "order_id": {"type": "string", "format": "uuid", "description": "A UUIDv7; also the envelope's subject."},
            "status": {"const": status},
            "version": {
                "type": "integer",
                "minimum": 1,
                "description": "Raised by every change of the order; versions may skip in the stream of events.",
            },
            "customer_id": {"type": "string", "description": "Absent where the order has no customer."},
            "currency": {"type": "string", "pattern": "^[A-Z]{3}$", "description": "ISO 4217."},
            "total_minor": {"type": "integer", "minimum": 0, "description": "In minor units of the currency."},
            "reference": {"type": "string", "description": "The customer's own."},
        },
    }
    if event_type == "order.failed":
        data["required"].append("failure_reason")
        data["properties"]["failure_reason"] = {"type": "string", "minLength": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": event_type,
        "description": meaning,
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {
                "type": "string",
                "format": "uuid",
                "description": "A UUIDv7, the same in every repeat of this event; also the message id.",
            },
            "source": {"const": SOURCE},
            "type": {"const": event_type},
            "subject": {"type": "string", "format": "uuid", "description": "The order's id."},
            "time": {"type": "string", "format": "date-time"},
            "datacontenttype": {"const": "application/json"},
            "data": data,
        },
    }


def asyncapi() -> Json:
    """Return the AsyncAPI document."""
    types = get_args(EventType)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Orders: events",
            "version": "1",
            "description": "What becomes of an order, told at least once, in the order of the changes of each order.",
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {
            event_type: {
                "address": event_type,
                "title": f"{event_type} on the exchange {EXCHANGE}",
                "messages": {event_type: {"$ref": f"#/components/messages/{event_type}"}},
                "bindings": {
                    "amqp": {
                        "is": "routingKey",
                        "exchange": {"name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False},
                        "bindingVersion": "0.3.0",
                    }
                },
            }
            for event_type in types
        },
        "operations": {
            f"send.{event_type}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{event_type}"},
                "bindings": {
                    "amqp": {"deliveryMode": 2, "mandatory": event_type in REQUIRED, "bindingVersion": "0.3.0"}
                },
            }
            for event_type in types
        },
        "components": {
            "messages": {
                event_type: {
                    "name": event_type,
                    "summary": MEANINGS[event_type][1],
                    "contentType": CONTENT_TYPE,
                    "headers": {
                        "type": "object",
                        "properties": {"traceparent": {"type": "string", "description": "W3C Trace Context."}},
                    },
                    "payload": schema_of(event_type),
                }
                for event_type in types
            }
        },
    }


def files() -> dict[str, bytes]:
    """Return the documents by their path below `docs`."""
    documents = {f"schemas/{event_type}.json": schema_of(event_type) for event_type in get_args(EventType)}
    documents["asyncapi.json"] = asyncapi()
    return {path: msgspec.json.format(msgspec.json.encode(document)) + b"\n" for path, document in documents.items()}


def main() -> None:
    """Write the files below the folder that is named."""
    for path, content in files().items():
        file = Path(sys.argv[1]) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


if __name__ == "__main__":
    main()
