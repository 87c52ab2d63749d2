"""A delivery's bytes, read by hand, against pamqp."""

import pamqp.frame
import pytest
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from orders import frames

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


def payload(frame: Basic.Deliver | ContentHeader) -> bytes:
    return pamqp.frame.marshal(frame, 1)[7:-1]


@pytest.mark.parametrize("properties", PROPERTIES)
def test_string_headers(properties: Basic.Properties) -> None:
    """
    A header that is a string is found among whatever others there are; no other one is.
    """
    header = payload(ContentHeader(body_size=70_000, properties=properties))
    expected = (properties.headers or {}).get("traceparent")

    assert frames.read_size(header) == 70_000
    assert frames.read_string(header, b"traceparent") == (expected if isinstance(expected, str) else None)


def test_half_a_header() -> None:
    """
    A content header that ends anywhere, or claims more than there is, is read as one without the string.
    """
    whole = payload(ContentHeader(body_size=1, properties=Basic.Properties(headers={"a": "b", "n": 1, "trace": "x"})))

    assert frames.read_string(whole, b"trace") == "x"
    assert {frames.read_string(whole[:end], b"trace") for end in range(12, len(whole))} <= {None, ""}


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
        assert frames.read_string(header[:2] + b"\0\0" + header[4:], b"trace") is None


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

    assert payload(deliver).startswith(frames.DELIVER)
    assert frames.read_deliver(payload(deliver)) == (2**40 + 7, redelivered)
