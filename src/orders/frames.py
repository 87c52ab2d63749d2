"""What a consumer needs of AMQP 0-9-1's bytes: a delivery's method, its content header, and one of its headers.

Read by hand, since pamqp takes several times as long as all the rest of a delivery.
"""

import struct

from pamqp import decode

DELIVER = b"\0\x3c\0\x3c"  # its class and method

_LARGEST_TABLE = 16 << 10  # bytes; pamqp takes the square of them

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13

_short = struct.Struct(">H").unpack_from
_long = struct.Struct(">I").unpack_from
_long_long = struct.Struct(">Q").unpack_from
_tag = struct.Struct(">QB").unpack_from


def read_deliver(method: bytes) -> tuple[int, bool]:
    """Return the delivery tag of a DELIVER, and whether the broker has delivered the message before."""
    tag, bits = _tag(method, 5 + method[4])  # behind the consumer's tag
    return tag, bool(bits & 1)


def read_size(header: bytes) -> int:
    """Return the size of the body behind a content header, in bytes."""
    return _long_long(header, 4)[0]  # type: ignore[no-any-return]


def read_string(header: bytes, name: bytes) -> str | None:
    """Return a header of a message if it is there and a string of UTF-8; whatever else is there, none raises."""
    try:
        (flags,) = _short(header, 12)
        if not flags & _HEADERS:
            return None
        at = 14
        for bit in (_CONTENT_TYPE, _CONTENT_ENCODING):
            if flags & bit:
                at += 1 + header[at]
        size = _long(header, at)[0]
        if size > _LARGEST_TABLE:
            return None
        end = at + 4 + size
        table, at = at, at + 4
        while at < end:
            found = header[at + 1 : at + 1 + header[at]]
            at += 1 + header[at]
            if header[at : at + 1] != b"S":  # not all are strings: pamqp knows the other types
                value = decode.field_table(header[table:end])[1].get(name.decode())
                return value if isinstance(value, str) else None
            size = _long(header, at + 1)[0]
            if found == name:
                return header[at + 5 : at + 5 + size].decode()
            at += 5 + size
    except (ValueError, struct.error, IndexError, RecursionError):
        return None
    return None
