"""Encodes a message as AMQP 0-9-1 frames: publish method, content header, body.

Written by hand, since pamqp takes several times as long as all the rest of a publish; a test compares the bytes with
those of pamqp.
"""

import struct
from typing import Any

import msgspec
import pamqp.encode
import pamqp.frame
from pamqp.commands import Basic

from relay.amqp_bytes import CONTENT_TYPE, DELIVERY_MODE, HEADERS, MESSAGE_ID, TIMESTAMP
from relay.message import Message

FRAME_END = b"\xce"
FRAME_OVERHEAD = 8
BASIC_CLASS = 60
PERSISTENT = b"\x02"

ALWAYS = DELIVERY_MODE | MESSAGE_ID | TIMESTAMP

_frame_start = struct.Struct(">BHI").pack
_content_start = struct.Struct(">BHIHHQH").pack  # a frame's start, and behind it a content header's
_timestamp = struct.Struct(">Q").pack
_length = struct.Struct(">I").pack
_strings = msgspec.json.Decoder(dict[str, str]).decode

CONTENT_START_BYTES = 14  # of the frame's payload

METHODS_KEPT = 4096
LONGEST_NAME = 128


class Unencodable(Exception):
    """AMQP has no form for this message."""


class Encoder:
    """Encodes messages for one channel of one connection; `frame_max` is the largest frame in bytes, 0 the default."""

    def __init__(self, channel: int, frame_max: int) -> None:
        self._channel = channel
        self._largest = (frame_max or 131072) - FRAME_OVERHEAD
        self._methods: dict[tuple[str, str], bytes] = {}

    def encode(self, message: Message) -> bytes:
        """Return all frames of this message, which is persistent and mandatory; raises Unencodable."""
        header = self._header(message)
        method = self._methods.get((message.exchange, message.routing_key)) or self._method(message)
        body = message.body
        if not body:
            return method + header
        if len(body) <= self._largest:
            start = _frame_start(3, self._channel, len(body))
            return b"".join((method, header, start, body, FRAME_END))
        parts = [method, header]
        for offset in range(0, len(body), self._largest):
            piece = body[offset : offset + self._largest]
            parts += (_frame_start(3, self._channel, len(piece)), piece, FRAME_END)
        return b"".join(parts)

    def _method(self, message: Message) -> bytes:
        try:
            method: bytes = pamqp.frame.marshal(
                Basic.Publish(exchange=message.exchange, routing_key=message.routing_key, mandatory=True),
                self._channel,
            )
        except (ValueError, TypeError, struct.error) as error:
            raise Unencodable(f"its address cannot be encoded: {error}") from error
        if len(self._methods) >= METHODS_KEPT:
            self._methods.clear()
        self._methods[message.exchange, message.routing_key] = method
        return method

    def _header(self, message: Message) -> bytes:
        flags = ALWAYS
        content_type = headers = b""
        if message.content_type:
            flags |= CONTENT_TYPE
            content_type = short_string(message.content_type)
        if message.headers != "{}":
            flags |= HEADERS
            headers = header_table(message.headers)
        event_id = short_string(message.event_id)
        try:
            created = _timestamp(int(message.created))
        except (OverflowError, ValueError, struct.error) as error:
            raise Unencodable(f"its time cannot be encoded: {error}") from error
        size = CONTENT_START_BYTES + len(content_type) + len(headers) + len(event_id) + 9
        if size > self._largest:
            raise Unencodable(f"its headers take {size} bytes, and a frame of this broker {self._largest}")
        start = _content_start(2, self._channel, size, BASIC_CLASS, 0, len(message.body), flags)
        return b"".join((start, content_type, headers, PERSISTENT, event_id, created, FRAME_END))


def short_string(value: str) -> bytes:
    """Return AMQP's short string; raises Unencodable if `value` has more than 255 bytes in UTF-8."""
    raw = value.encode()
    if len(raw) > 255:
        raise Unencodable(f"{value[:40]!r}... has {len(raw)} bytes, and AMQP allows 255")
    return bytes((len(raw),)) + raw


def header_table(headers: str) -> bytes:
    """Return AMQP's field table of a JSON object; raises Unencodable."""
    try:
        strings = _strings(headers)
    except msgspec.ValidationError:
        return _any_table(headers)
    except msgspec.MsgspecError as error:
        raise Unencodable(f"its headers cannot be encoded: {error}") from error
    # Almost always all values are strings; pamqp takes four times as long for them.
    fields: list[bytes] = []
    for name, value in strings.items():
        raw_name, raw = name.encode(), value.encode()
        if len(raw_name) > LONGEST_NAME:
            raise _name_too_long(name)
        fields += (bytes((len(raw_name),)), raw_name, b"S", _length(len(raw)), raw)
    table = b"".join(fields)
    return _length(len(table)) + table


def _any_table(headers: str) -> bytes:
    try:
        table: dict[str, Any] = msgspec.json.decode(headers, type=dict[str, Any])
        _check_names(table)
        encoded: bytes = pamqp.encode.field_table(table)
    except (msgspec.MsgspecError, TypeError, ValueError, struct.error, OverflowError, RecursionError) as error:
        raise Unencodable(f"its headers cannot be encoded: {error}") from error
    return encoded


def _check_names(value: Any) -> None:
    """Raise Unencodable for a long name: pamqp would shorten it, and only log that."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if len(name.encode()) > LONGEST_NAME:
                raise _name_too_long(name)
            _check_names(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_names(inner)


def _name_too_long(name: str) -> Unencodable:
    return Unencodable(f"its header {name[:40]!r}... has more than {LONGEST_NAME} bytes in its name")
