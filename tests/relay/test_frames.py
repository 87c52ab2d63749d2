"""The bytes that are built by hand, held against pamqp."""

import datetime
import math

import msgspec
import pamqp.decode
import pamqp.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from relay.frames import METHODS_KEPT, Encoder, Unencodable, header_table
from relay.message import Message
from tests.relay.messages import make_message


def frames_of(message: Message, frame_max: int = 131072) -> list[tuple[int, object]]:
    raw = Encoder(7, frame_max).encode(message)
    found: list[tuple[int, object]] = []
    while raw:
        size, channel, frame = pamqp.frame.unmarshal(raw)
        assert size <= frame_max
        found.append((channel, frame))
        raw = raw[size:]
    return found


def test_all_frames() -> None:
    """
    A publish is persistent and mandatory, with the row's id, type, headers and time, on the right channel.
    """
    message = make_message(5, headers='{"traceparent": "00-aa-bb-01", "n": 3, "deep": {"yes": true}}', body=b"hello")

    (one, method), (two, header), (three, body) = frames_of(message)

    assert (one, two, three) == (7, 7, 7)
    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("orders", "order.placed", True)
    assert isinstance(header, ContentHeader)
    assert header.body_size == 5
    properties = header.properties
    assert properties.delivery_mode == 2
    assert message.event_id == properties.message_id
    assert properties.content_type == "application/json"
    assert properties.headers == {"traceparent": "00-aa-bb-01", "n": 3, "deep": {"yes": True}}
    assert datetime.datetime.fromtimestamp(1_795_000_000, datetime.UTC) == properties.timestamp
    assert isinstance(body, ContentBody)
    assert body.value == b"hello"


def test_bare_message() -> None:
    """
    No headers, no content type, no body: then there is no such property, and no body frame.
    """
    (_, _), (_, header) = frames_of(make_message(5, content_type="", body=b""))

    assert isinstance(header, ContentHeader)
    assert (header.properties.headers, header.properties.content_type) == (None, None)


@pytest.mark.parametrize("size", [4087, 4088, 4089, 8176, 20000])
def test_bodies_are_split_over_frames(size: int) -> None:
    """
    No frame is larger than the broker allows, and the pieces make the body.
    """
    body = bytes(at % 251 for at in range(size))

    found = frames_of(make_message(5, body=body), frame_max=4096)

    pieces = [frame.value for _, frame in found if isinstance(frame, ContentBody)]
    assert body == b"".join(pieces)
    assert -(-size // 4088) == len(pieces)


@pytest.mark.parametrize(
    "message",
    [
        make_message(1, headers='{"big": 99999999999999999999999}'),
        make_message(1, headers="[1]"),
        make_message(1, headers='{"a": '),
        make_message(1, headers='{"%s": "v"}' % ("k" * 129)),
        make_message(1, headers='{"%s": 1}' % ("k" * 129)),
        make_message(1, headers='{"a": [{"%s": 1}]}' % ("k" * 129)),
        make_message(1, headers='{"long": "%s"}' % ("v" * 200_000)),
        make_message(1, headers='{"deep": ' * 2000 + "{}" + "}" * 2000),
        make_message(1, headers='{"deep": ' + "[" * 2000 + "]" * 2000 + "}"),
        make_message(1, created=-1.0),  # AMQP's time begins in 1970
        make_message(1, created=math.inf),
        make_message(1, content_type="x" * 256),
        make_message(1, event_id="x" * 256),
        make_message(1, routing_key="ü" * 200),
    ],
)
def test_what_amqp_cannot_say(message: Message) -> None:
    """
    A message that has no form in AMQP is told before anything is sent.
    """
    with pytest.raises(Unencodable):
        Encoder(7, 131072).encode(message)


def test_headers_may_be_nested() -> None:
    """
    Lists and objects within the headers arrive as they are, empty ones too.
    """
    headers = {"list": [1, "two", {"three": True}, []], "none": None, "longest": {"k" * 128: 1}}

    _, header = frames_of(make_message(1, headers=msgspec.json.encode(headers).decode()))[1]

    assert isinstance(header, ContentHeader)
    assert header.properties.headers == headers


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=32), st.text(max_size=300), max_size=5))
def test_headers_of_strings_are_read_by_pamqp(headers: dict[str, str]) -> None:
    """
    What is encoded by hand is read as it was written, and nothing is left over.
    """
    table = header_table(msgspec.json.encode(headers).decode())

    assert pamqp.decode.field_table(table) == (len(table), headers)


def test_cached_addresses_are_bounded() -> None:
    """
    A million routing keys do not fill the memory.
    """
    encoder = Encoder(7, 0)

    for at in range(METHODS_KEPT + 5):
        assert f"key.{at}".encode() in encoder.encode(make_message(1, routing_key=f"key.{at}"))

    assert len(encoder._methods) <= METHODS_KEPT
