"""Messages for tests that need no database."""

from relay.message import Message


def make_message(
    row_id: int,
    key: str = "key",
    *,
    event_id: str | None = None,
    exchange: str = "orders",
    routing_key: str = "order.placed",
    required: bool = True,
    content_type: str = "application/json",
    headers: str = "{}",
    body: bytes = b"{}",
    created: float = 1_795_000_000.25,
    parked: bool = False,
    key_waits: bool = False,
) -> Message:
    """A message as it would be claimed."""
    return Message(
        id=row_id,
        event_id=event_id or f"00000000-0000-7000-8000-{row_id:012d}",
        key=key,
        exchange=exchange,
        routing_key=routing_key,
        required=required,
        content_type=content_type,
        headers=headers,
        body=body,
        created=created,
        parked=parked,
        key_waits=key_waits,
    )
