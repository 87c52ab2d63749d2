#!/usr/bin/env bash
# Software: cloudevents 2.2.0 (the Python SDK), its RabbitMQ, Kafka and HTTP bindings, JSONFormat.
#
# Expected: an event whose datacontenttype is application/json carries JSON in its body, in binary mode
# as in structured mode, and comes back with equal data.
#
# Instead: binary mode encodes as JSON only data that is a dict. A list of objects, True and a list with
# None are written as Python would print them (single quotes, True, None) under the content type
# application/json. A str goes without quotes. The SDK reads its own array back as a str, without an
# error, and the str "42" as the number 42. A boolean extension becomes "True", where the CloudEvents
# type system says "true". Structured mode does all of this right.
#
# Why it matters: the lines of an order are a JSON array. Its event passes every test that publishes a
# dict, and is no JSON for any consumer in another language. Encode the data to bytes first.
#
# Output (rabbitmq; kafka and http give the same bodies):
#   [{'sku': 'A1', 'gift': True}] binary body [{'sku': 'A1', 'gift': True}] read back as str
#   '42'                          binary body 42                          read back as int
#   {'sku': 'A1', 'gift': True}   binary body {"sku": "A1", "gift": true} read back as dict
#   extension express=True        header ce-express: True
#   structured mode: 3 of 3 read back equal
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
timeout 200 venv/bin/pip install -q --disable-pip-version-check --no-deps \
  cloudevents==2.2.0 python-dateutil==4.0.0 deprecation==2.1.0 packaging==26.4

timeout 60 venv/bin/python - <<'PY'
import json
import sys

from cloudevents.core.bindings import http, kafka, rabbitmq
from cloudevents.core.v1.event import CloudEvent


def event(data):
    attributes = {"id": "1", "source": "/shop", "type": "placed", "specversion": "1.0", "express": True}
    return CloudEvent({**attributes, "datacontenttype": "application/json"}, data)


def is_json(body):
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


line = {"sku": "A1", "gift": True}
seen = []
structured = 0
for data in ([line], "42", line):
    message = rabbitmq.to_binary_event(event(data))
    bodies = {message.body, kafka.to_binary_event(event(data)).value, http.to_binary_event(event(data)).body}
    back = rabbitmq.from_rabbitmq_event(message).get_data()
    whole = rabbitmq.from_rabbitmq_event(rabbitmq.to_structured_event(event(data))).get_data()
    structured += whole == data
    seen.append((message.content_type, len(bodies), is_json(message.body), back == data))
    print(f"{data!r:29} binary body {message.body.decode():27} read back as {type(back).__name__}")
flag = message.headers["ce-express"]
print(f"{'extension express=True':29} header ce-express: {flag}")
print(f"structured mode: {structured} of 3 read back equal")
json_type = "application/json"
wanted = [(json_type, 1, False, False), (json_type, 1, True, False), (json_type, 1, True, True)]
if (seen, flag, structured) != (wanted, "True", 3):
    sys.exit("changed: binary mode no longer writes an array as Python prints it")
PY
