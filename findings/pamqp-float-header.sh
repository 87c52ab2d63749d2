#!/usr/bin/env bash
# Software: pamqp 4.0.1, the frame codec of aiormq 7.2.4 and aio-pika.
#
# Expected: a Python float in a message header arrives as it was. Python floats have 64 bits, AMQP 0-9-1
# has a 64-bit type for them ("d"), and pamqp decodes that type.
#
# Instead: pamqp encodes each float as the 32-bit type ("f"), without an error. About seven digits
# survive. A float that 32 bits cannot hold at all raises OverflowError, so that only the values that
# change in silence get through.
#
# Why it matters: time.time() in a header, the usual way to measure the age of an event, arrives up to 64
# seconds off: in the future or the past, and equal for all events of two minutes. Amounts lose their cents
# above 131,072. Send integers (nanoseconds, cents) or text.
#
# Output:
#   header 1796090629.25   frame type f  arrives as 1796090624.0   off by -5.25
#   header 1796090688.5    frame type f  arrives as 1796090752.0   off by 63.5
#   header 524288.01       frame type f  arrives as 524288.0       off by -0.01
#   a 64-bit field of another client: 1796090629.25 arrives as 1796090629.25
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
timeout 200 venv/bin/pip install -q --disable-pip-version-check --no-deps pamqp==4.0.1

timeout 60 venv/bin/python - <<'PY'
import struct
import sys

from pamqp import commands, decode, frame, header

NAME = b"\x07created"  # a field name: its length, then its letters


def over_the_wire(value):
    properties = commands.Basic.Properties(headers={"created": value})
    payload = frame.marshal(header.ContentHeader(0, 0, properties), 1)
    field_type = payload[payload.index(NAME) + len(NAME) :][:1].decode()
    _, _, received = frame.unmarshal(payload)
    return field_type, received.properties.headers["created"]


types, errors = set(), []
for value in (1796090629.25, 1796090688.5, 524288.01):
    field_type, received = over_the_wire(value)
    types.add(field_type)
    errors.append(round(received - value, 2))
    print(f"header {value!r:15} frame type {field_type}  arrives as {received!r:14} off by {errors[-1]}")
field = NAME + b"d" + struct.pack(">d", 1796090629.25)
_, table = decode.field_table(struct.pack(">I", len(field)) + field)
print(f"a 64-bit field of another client: 1796090629.25 arrives as {table['created']}")
if (types, errors, table["created"]) != ({"f"}, [-5.25, 63.5, -0.01], 1796090629.25):
    sys.exit("changed: pamqp no longer sends a Python float as a 32-bit field")
PY
