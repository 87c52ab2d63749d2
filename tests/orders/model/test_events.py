"""The documents for others say what is really published."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import jsonschema_rs
import msgspec
import pytest
from psycopg import AsyncConnection

from orders.broker.topology import WORK_QUEUE
from orders.database.cancel_orders import Cancellation, cancel_orders
from orders.database.dead_letters_table import DeadLetter, store
from orders.database.finish_orders import finish_of, finish_orders
from orders.database.redrive_orders import Redrive, redrive_orders
from orders.model.events import CONTENT_TYPE, EXCHANGE, REQUIRED, Envelope, EventType
from orders.model.order import Status
from orders.model.traceparent import continue_trace
from tests.orders.work_samples import claim, fail, place, rows

DOCS = Path(__file__).parents[3] / "docs"
TYPES: Sequence[EventType] = get_args(EventType)


def test_the_page_names_every_event() -> None:
    """
    The page for readers has a line for each type, and no other.
    """
    page = (DOCS / "events.md").read_text()
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `order.")] == list(TYPES)


async def test_every_event_has_its_schema(conn: AsyncConnection) -> None:
    """
    What the outbox holds after an order's whole life fits its type's schema, and has no field that the schema lacks.
    """
    done, refused, dead, cancelled = await place(conn, 4)
    claims = await claim(conn, [done, refused])
    await finish_orders(conn, [finish_of(claims[0], continue_trace(None))])
    await fail(conn, [claims[1]])
    await store(conn, [DeadLetter(dead.event.body, len(dead.event.body))])
    await redrive_orders(conn, Redrive("test"), [1, 2])
    await cancel_orders(
        conn, [Cancellation(order_id=cancelled.order.order_id, client="", traceparent=continue_trace(None), key=None)]
    )

    seen = set()
    for exchange, routing_key, content_type, event_id, key, body in await rows(
        conn, "SELECT exchange, routing_key, content_type, event_id, key, body FROM outbox WHERE exchange <> ''"
    ):
        assert isinstance(body, bytes)
        seen.add(check(str(routing_key), body))
        envelope = msgspec.json.decode(body)
        assert (exchange, routing_key, content_type) == (EXCHANGE, envelope["type"], "application/cloudevents+json")
        assert (event_id, key) == (UUID(envelope["id"]), envelope["subject"])
        assert envelope["subject"] == envelope["data"]["order_id"]
    assert seen == set(TYPES)


def check(event_type: str, body: bytes) -> str:
    """Hold an event against its type's schema, and the schema against the event."""
    schema = read(f"schemas/{event_type}.json")
    envelope = msgspec.json.decode(body)
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(envelope)
    assert envelope.keys() <= schema["properties"].keys()
    assert envelope["data"].keys() <= schema["properties"]["data"]["properties"].keys()
    return event_type


@pytest.mark.parametrize("event_type", TYPES)
def test_schemas_agree_with_the_structs(event_type: EventType) -> None:
    """
    A schema has the fields of the envelope and its data, each with its type; those without a default are required.
    """
    schema = read(f"schemas/{event_type}.json")
    data = schema["properties"]["data"]
    structs = msgspec.json.schema(Envelope)["$defs"]
    # What is required beyond the structs: this content type is always said, and a failure has its reason.
    failed = event_type == "order.failed"

    assert set(schema["required"]) == {*structs["Envelope"]["required"], "datacontenttype"} == set(schema["properties"])
    assert set(data["required"]) == {*structs["Data"]["required"], *(["failure_reason"] if failed else [])}
    assert set(data["properties"]) == structs["Data"]["properties"].keys() - (set() if failed else {"failure_reason"})
    for fields, name in ((schema["properties"], "Envelope"), (data["properties"], "Data")):
        for field, said in fields.items():
            if "type" in said and field != "data":
                assert said["type"] in types_of(structs[name]["properties"][field]), field
    assert data["properties"]["status"]["const"] in get_args(Status)


def types_of(schema: dict[str, Any]) -> set[str]:
    """The JSON types that msgspec writes for a field."""
    return {each["type"] for each in schema.get("anyOf", [schema])}


def test_the_schemas_are_those_of_the_events() -> None:
    """
    There is a schema for each type of event, and no other.
    """
    assert {path.name for path in (DOCS / "schemas").iterdir()} == {f"{event_type}.json" for event_type in TYPES}


def test_asyncapi_hangs_together() -> None:
    """
    Every reference of the AsyncAPI document leads somewhere, and each event is a channel, an operation, a message.
    """
    document = read("asyncapi.json")

    def references(node: Any) -> list[str]:
        match node:
            case {"$ref": str(reference)}:
                return [reference]
            case dict():
                return [each for child in node.values() for each in references(child)]
            case list():
                return [each for child in node for each in references(child)]
        return []

    for reference in references(document):
        file, _, pointer = reference.partition("#/")
        node: Any = read(file) if file else document
        for step in pointer.split("/") if pointer else []:
            node = node[step]
    assert list(document["channels"]) == list(document["components"]["messages"]) == list(TYPES)
    assert list(document["operations"]) == [f"send.{event_type}" for event_type in TYPES]
    assert WORK_QUEUE not in document["channels"]


@pytest.mark.parametrize("event_type", TYPES)
def test_asyncapi_agrees_with_the_code(event_type: EventType) -> None:
    """
    The address, the exchange, the content type and the flags of an event are those with which it is published.
    """
    document = read("asyncapi.json")
    channel = document["channels"][event_type]
    operation = document["operations"][f"send.{event_type}"]
    message = document["components"]["messages"][event_type]

    assert channel["address"] == message["name"] == event_type
    assert channel["messages"] == {event_type: {"$ref": f"#/components/messages/{event_type}"}}
    assert channel["bindings"]["amqp"]["is"] == "routingKey"
    assert channel["bindings"]["amqp"]["exchange"] == {
        "name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False
    }  # fmt: skip
    assert (operation["action"], operation["channel"]) == ("send", {"$ref": f"#/channels/{event_type}"})
    flags = operation["bindings"]["amqp"]
    assert (flags["deliveryMode"], flags["mandatory"]) == (2, event_type in REQUIRED)
    assert message["contentType"] == document["defaultContentType"] == CONTENT_TYPE
    assert message["payload"] == {"$ref": f"schemas/{event_type}.json"}
    assert message["summary"] == read(f"schemas/{event_type}.json")["description"]


def read(path: str) -> dict[str, Any]:
    """A document below docs."""
    document: dict[str, Any] = msgspec.json.decode((DOCS / path).read_bytes())
    return document
