"""The way of a placement past Litestar.

Litestar's own way (router, handler signature, response) costs 35 to 40 us of CPU, as much as all our work on a
placement before its statement. Every other route goes through Litestar, and both ways answer errors by the same table
(orders.api.problems). The functions here also serve the handlers in orders.api.routes.
"""

import re
from typing import Any

import msgspec
from litestar import Litestar, Request
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import ASGIApp, Receive, Scope, Send

from orders.api import problems
from orders.api.auth import Caller
from orders.api.problems import BadRequest
from orders.api.services import Services
from orders.database.place_orders import Placed, placement_of
from orders.model.ids import text_of
from orders.model.order import NewOrder
from orders.model.traceparent import continue_trace

MAX_BODY_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
IDEMPOTENCY_KEY = rb"[\x21-\x7e]{1,255}"

Headers = dict[bytes, bytes]

_is_json = re.compile(rb"application/json\s*(;.*)?", re.IGNORECASE).fullmatch
_is_key = re.compile(IDEMPOTENCY_KEY).fullmatch
_new_order = msgspec.json.Decoder(NewOrder)


class Api(Litestar):
    """The application: Litestar, except for `POST /orders`."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != "/orders" or scope["method"] != "POST":
            await super().__call__(scope, receive, send)
            return
        try:
            answer = await place(self.state["services"], scope, receive)
        except Exception as error:
            scope["app"] = scope["litestar_app"] = self
            answer = problems.answer_to(Request(scope, receive, send), error)
        await answer(scope, receive, send)


async def place(services: Services, scope: Scope, receive: Receive) -> ASGIApp:
    """Place the order of a request; return its answer, ready to be sent.

    Raises BadRequest, RequestEntityTooLarge, and every error of `place_new`.
    """
    headers = headers_of(scope)
    caller = await services.authenticate(header_text(headers, b"authorization"), "orders:place")
    if not _is_json(headers.get(b"content-type", b"")):
        raise BadRequest(415, "The body must be JSON: send Content-Type: application/json.", Accept="application/json")
    key = idempotency_key(scope, headers)
    body = await body_of(receive)
    try:
        new = problems.decode(_new_order, body)
    except BadRequest:
        if coding := coding_of(headers, body):
            detail = f"The body is encoded with {coding}: send plain JSON, without a Content-Encoding."
            raise BadRequest(415, detail, Accept_Encoding="identity") from None
        raise
    placed = await place_new(services, headers, caller, new, key)
    return created(placed)


async def place_new(
    services: Services, headers: Headers, caller: Caller, new: NewOrder | None, key: str | None
) -> Placed:
    """Return once the order is committed with its event; `new` is None for the tutorial's order without lines.

    Raises Overloaded under back pressure, InvalidOrder, and the errors of `Services.place`.
    """
    services.back_pressure.check()
    traceparent = continue_trace(header_text(headers, b"traceparent"))
    return await services.place(placement_of(new, client=caller.client, traceparent=traceparent, key=key), caller.until)


def created(placed: Placed) -> ASGIApp:
    """Return the 201 for a placement; Litestar's Response costs a tenth of one."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(placed.answer)),
        (b"location", f"/orders/{text_of(placed.order_id)}".encode()),
    ]
    if placed.replayed:
        headers.append((b"idempotency-replayed", b"true"))

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": placed.answer, "more_body": False})

    return answer


def headers_of(scope: Scope) -> Headers:
    """Return the headers by their names in lower case; of a repeated one, the last.

    Litestar's mapping of them covers every case, and costs a tenth of a placement.
    """
    return dict(scope["headers"])


def header_text(headers: Headers, name: bytes) -> str | None:
    """Return the value of a header as text; bytes above 127 are Latin-1 (RFC 9110, section 5.5)."""
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


async def body_of(receive: Receive) -> bytes:
    """Return the whole body. Litestar's way to read it makes its mapping of the headers first.

    Raises RequestEntityTooLarge above MAX_BODY_BYTES, and BadRequest if the client disconnects before the end.
    """
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client has disconnected
            raise BadRequest(400, "The body ended before it was whole.")
        piece = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise RequestEntityTooLarge
        if not message.get("more_body"):
            return b"".join(pieces)


def coding_of(headers: Headers, body: bytes) -> str:
    """Return the content coding of a body that is no JSON, by its header or its first bytes; "" if it has none."""
    coding = (header_text(headers, b"content-encoding") or "").strip().lower()
    if coding not in ("", "identity"):
        return coding if coding.isalnum() else "a Content-Encoding"
    return "gzip" if body.startswith(GZIP_MAGIC) else ""


def idempotency_key(scope: Scope, headers: Headers) -> str | None:
    """Return the request's Idempotency-Key unchanged, None without one; raise BadRequest if it is malformed."""
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    times = sum(name == b"idempotency-key" for name, _ in scope["headers"])
    if times > 1 or not _is_key(key):
        raise BadRequest(400, "Idempotency-Key must be one value of 1 to 255 visible ASCII characters.")
    return key.decode("ascii")
