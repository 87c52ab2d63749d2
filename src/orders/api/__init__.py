"""HTTP: an order enters the system here.

routes          the routes and their handlers
fast_path       the way of a placement and of a look at an order past Litestar: headers, body, answer
batch           many orders in one request: NDJSON in and out
health          the routes /health, /health/live and /health/ready
services        the parts that handlers share, and their calls to the database
middleware      ASGI wrappers: HEAD for every GET, a request id for every answer
auth            API keys, kept in memory and confirmed every second
shares          the part of an api's room that one client may take
problems        errors as RFC 9457 problem documents
listing         lists of orders, a page at a time
live            streams and waits for a change of status: one statement a tick for all of them
preconditions   If-None-Match, ETag and Prefer
back_pressure   503 for placements while the oldest unsent event is too old
metrics         the route /metrics
key_expiry      deletes idempotency keys whose retention is over
openapi         the OpenAPI document and its page, with openapi.json and openapi.html
"""
