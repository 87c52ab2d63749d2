"""The bytes that are read by hand, held against pamqp; the relay's module is the same to the byte."""

import pamqp.frame
import pytest
from pamqp.base import Frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from orders.broker import amqp_bytes

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

PROPERTIES = [
    Basic.Properties(),
    Basic.Properties(headers={}),
    Basic.Properties(headers={"traceparent": TRACE}),
    Basic.Properties(headers={"a": "", "traceparent": TRACE, "ü": "ü"}, message_id="x"),
    Basic.Properties(headers={"other": "b", "tracepar": TRACE}),
    Basic.Properties(content_type="application/json", content_encoding="gzip", headers={"traceparent": TRACE}),
    Basic.Properties(headers={"x-death": [{"count": 7}], "n": 1, "traceparent": TRACE}, delivery_mode=2),
    Basic.Properties(headers={"traceparent": 7}, priority=3),
    Basic.Properties(headers={"traceparent": None}, correlation_id="y"),
]


def payload(frame: Frame | ContentHeader) -> bytes:
    return pamqp.frame.marshal(frame, 1)[7:-1]


@pytest.mark.parametrize("properties", PROPERTIES)
def test_string_headers(properties: Basic.Properties) -> None:
    """
    A header that is a string is found among whatever others there are; no other one is.
    """
    header = payload(ContentHeader(body_size=70_000, properties=properties))
    expected = (properties.headers or {}).get("traceparent")

    assert amqp_bytes.read_size(header) == 70_000
    assert amqp_bytes.read_string(header, b"traceparent") == (expected if isinstance(expected, str) else None)


def test_half_a_header() -> None:
    """
    A content header that ends anywhere, or claims more than there is, is read as one without the string.
    """
    whole = payload(ContentHeader(body_size=1, properties=Basic.Properties(headers={"a": "b", "n": 1, "trace": "x"})))

    assert amqp_bytes.read_string(whole, b"trace") == "x"
    assert {amqp_bytes.read_string(whole[:end], b"trace") for end in range(12, len(whole))} <= {None, ""}


def test_hostile_headers() -> None:
    """
    Tables in tables, a table of thousands of fields and a string that is no text are read as if there were no string.
    """
    deep: dict[str, object] = {}
    for _ in range(600):
        deep = {"": deep}
    raw = b"\x05trace" + b"S" + (2).to_bytes(4) + b"\xff\xff"

    for table in (field_table({"deep": deep}), field_table({str(n): n for n in range(10_000)}), sized(raw)):
        header = (60).to_bytes(4) + (0).to_bytes(8) + (1 << 13).to_bytes(2) + table
        assert amqp_bytes.read_string(header[:2] + b"\0\0" + header[4:], b"trace") is None


def sized(fields: bytes) -> bytes:
    return len(fields).to_bytes(4) + fields


def field_table(table: dict[str, object]) -> bytes:
    """Encode a table of tables and numbers, however deep it is: pamqp would recurse."""
    inner: list[tuple[str, dict[str, object]]] = []
    fields = b"".join(
        bytes((len(name),)) + name.encode() + b"I" + value.to_bytes(4)
        for name, value in table.items()
        if isinstance(value, int)
    )
    while nested := next(((name, value) for name, value in table.items() if isinstance(value, dict)), None):
        inner.append(nested)
        table = nested[1]
    encoded = sized(fields)
    for name, _ in reversed(inner):
        encoded = sized(bytes((len(name),)) + name.encode() + b"F" + encoded)
    return encoded


@pytest.mark.parametrize("redelivered", [True, False])
@pytest.mark.parametrize("consumer", ["", "ctag1.9f3c", "c" * 255])
def test_deliver(consumer: str, redelivered: bool) -> None:
    """
    The tag and whether the message comes again, behind a consumer's tag of any length.
    """
    deliver = Basic.Deliver(
        consumer_tag=consumer, delivery_tag=2**40 + 7, redelivered=redelivered, exchange="e", routing_key="k"
    )

    assert payload(deliver).startswith(amqp_bytes.DELIVER)
    assert amqp_bytes.read_deliver(payload(deliver)) == (2**40 + 7, redelivered)


@pytest.mark.parametrize("multiple", [True, False])
def test_confirms_are_read(multiple: bool) -> None:
    """
    An ack and a nack, single or of a range.
    """
    ack = payload(Basic.Ack(delivery_tag=2**40 + 7, multiple=multiple))
    nack = payload(Basic.Nack(delivery_tag=9, multiple=multiple, requeue=True))

    assert (ack[:4], nack[:4]) == (amqp_bytes.ACK, amqp_bytes.NACK)
    assert amqp_bytes.read_confirm(ack) == (2**40 + 7, multiple)
    assert amqp_bytes.read_confirm(nack) == (9, multiple)


def test_returns_are_read() -> None:
    """
    Why a message comes back.
    """
    method = payload(Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="orders", routing_key="order.done"))

    assert method[:4] == amqp_bytes.RETURN
    assert amqp_bytes.read_return(method) == "312 NO_ROUTE"


@pytest.mark.parametrize(
    "properties",
    [
        Basic.Properties(),
        Basic.Properties(message_id="event-1"),
        Basic.Properties(content_type="a/b", headers={"a": "b", "n": 1}, delivery_mode=2, message_id="event-1"),
        Basic.Properties(
            content_type="a/b", content_encoding="gzip", headers={}, delivery_mode=2, priority=9, correlation_id="c",
            reply_to="r", expiration="60000", message_id="event-1", message_type="t", user_id="u", app_id="a",
        ),
        Basic.Properties(content_encoding="gzip", priority=1, expiration="1", message_type="t"),
    ],
)  # fmt: skip
def test_the_id_is_read_among_other_properties(properties: Basic.Properties) -> None:
    """
    A message that comes back is known by its id, whatever stands before it.
    """
    header = payload(ContentHeader(body_size=12_345, properties=properties))

    assert amqp_bytes.read_content(header) == (12_345, properties.message_id or "")
