"""Which messages ask for work."""

import pytest

from orders.model import events
from orders.model.events import Data, Event
from orders.model.ids import uuid7
from orders.model.traceparent import continue_trace
from orders.model.work_message import MAX_EVENT_BYTES, InvalidMessage, WorkMessage, parse


def event(version: int = 1) -> Event:
    """An event that asks for work."""
    return events.event_of(
        "order.placed", Data(order_id=uuid7(), status="placed", version=version), continue_trace(None)
    )


def test_an_event_that_asks_for_work() -> None:
    """
    A message says which order it is about, by which event, and the order's version.
    """
    asked = event(version=7)
    assert parse(asked.body, len(asked.body)) == WorkMessage(asked.order_id, asked.event_id, 7)


@pytest.mark.parametrize(
    ("body", "size", "kind"),
    [
        (b"", 0, "malformed"),
        (b"\xff\xfe", 2, "malformed"),
        (b"[" * 100_000, 50_000, "malformed"),
        (b'{"specversion": "1.0"}', 22, "malformed"),
        (event().body.replace(b"order.placed", b"order.done\\u0000"), 200, "malformed"),
        (event().body.replace(b'"subject":"', b'"subject":"x'), 200, "malformed"),
        (b"{}", MAX_EVENT_BYTES + 1, "oversized"),
    ],
    ids=["empty", "not utf-8", "deep", "half", "another type", "another subject", "oversized"],
)
def test_invalid_messages_are_named(body: bytes, size: int, kind: str) -> None:
    """
    A message that is no event that asks for work is invalid, and the error says why.
    """
    with pytest.raises(InvalidMessage) as caught:
        parse(body, size)
    assert caught.value.kind == kind
