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
from orders.database.dead_letters_table import DeadLetter, store
from orders.database.finish_orders import finish_of, finish_orders
from orders.database.redrive_orders import Redrive, redrive_orders
from orders.model.events import EXCHANGE, EventType
from orders.model.traceparent import continue_trace
from orders.tools import catalogue
from tests.orders.work_samples import claim, fail, place, rows

DOCS = Path(__file__).parents[3] / "docs"
TYPES: Sequence[EventType] = get_args(EventType)


@pytest.mark.parametrize("path", catalogue.files())
def test_documents_are_up_to_date(path: str) -> None:
    """
    The files are what `python -m orders.tools.catalogue docs` writes.
    """
    assert (DOCS / path).read_bytes() == catalogue.files()[path]


def test_catalogue_names_every_event() -> None:
    """
    The page for readers has a line for each type, and no other.
    """
    page = (DOCS / "events.md").read_text()
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `order.")] == list(TYPES)


async def test_every_event_has_its_schema(conn: AsyncConnection) -> None:
    """
    What the outbox holds after an order's whole life fits its type's schema, and has no field that the schema lacks.
    """
    done, refused, dead = await place(conn, 3)
    claims = await claim(conn, [done, refused])
    await finish_orders(conn, [finish_of(claims[0], continue_trace(None))])
    await fail(conn, [claims[1]])
    await store(conn, [DeadLetter(dead.event.body, len(dead.event.body))])
    await redrive_orders(conn, Redrive("test"), [1, 2])

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
    assert seen >= {"order.placed", "order.redriven", "order.done", "order.failed"}


def check(event_type: str, body: bytes) -> str:
    """Hold an event against its type's schema, and the schema against the event."""
    schema: dict[str, Any] = msgspec.json.decode((DOCS / "schemas" / f"{event_type}.json").read_bytes())
    envelope = msgspec.json.decode(body)
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(envelope)
    assert envelope.keys() <= schema["properties"].keys()
    assert envelope["data"].keys() <= schema["properties"]["data"]["properties"].keys()
    return event_type


def test_asyncapi_hangs_together() -> None:
    """
    Every reference of the AsyncAPI document leads somewhere, and each event is a channel, an operation, a message.
    """
    document = catalogue.asyncapi()

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
        node: Any = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
    assert list(document["channels"]) == list(document["components"]["messages"]) == list(TYPES)
    assert WORK_QUEUE not in document["channels"]
