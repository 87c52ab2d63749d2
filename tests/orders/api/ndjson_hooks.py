"""Hooks of schemathesis: bodies and answers of the media type application/x-ndjson are arrays in the document."""

import json
from typing import Any

import schemathesis
from schemathesis import DeserializationContext, SerializationContext

MEDIA_TYPE = "application/x-ndjson"


@schemathesis.serializer(MEDIA_TYPE)
def lines_of(ctx: SerializationContext, value: Any) -> bytes:
    """Write an item a line; what is no array, as bad input may be, is one line."""
    if isinstance(value, bytes):
        return value
    return b"".join(json.dumps(item).encode() + b"\n" for item in (value if isinstance(value, list) else [value]))


@schemathesis.deserializer(MEDIA_TYPE)
def items_of(ctx: DeserializationContext, response: Any) -> list[Any]:
    """Read a line an item."""
    return [json.loads(line) for line in response.content.splitlines()]
