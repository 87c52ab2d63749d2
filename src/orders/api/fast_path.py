"""The way of a placement, and of a look at an order, past Litestar.

Litestar's own way (router, handler signature, response) costs 35 to 40 us of CPU, as much as all our work on a
placement before its statement. Every other route goes through Litestar, and both ways answer errors by the same table
(orders.api.problems). The functions here also serve the handlers in orders.api.routes.
"""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from litestar import Litestar, Request
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import ASGIApp, Receive, Scope, Send

from orders.api import preconditions, problems
from orders.api.auth import Caller
from orders.api.problems import BadRequest
from orders.api.services import Services
from orders.database.orders_table import OrderLookup
from orders.database.place_orders import Placed, placement_of
from orders.model.errors import OrderNotFound, Unauthorized
from orders.model.ids import text_of
from orders.model.order import TERMINAL, NewOrder, Order
from orders.model.traceparent import continue_trace

MAX_BODY_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
IDEMPOTENCY_KEY = rb"[\x21-\x7e]{1,255}"

Headers = dict[bytes, bytes]
T = TypeVar("T")

_is_order = re.compile(r"/orders/([0-9a-fA-F-]{36})").fullmatch  # not /orders/batch, which has no GET
_is_json = re.compile(rb"application/json\s*(;.*)?", re.IGNORECASE).fullmatch
_is_key = re.compile(IDEMPOTENCY_KEY).fullmatch
_encode = msgspec.json.Encoder().encode
_new_order = msgspec.json.Decoder(NewOrder)


class Api(Litestar):
    """The application: Litestar, except for `POST /orders` and `GET /orders/{order_id}`."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        work = None
        if scope["type"] == "http":
            if scope["method"] == "POST":
                if scope["path"] == "/orders":
                    work = place(self.state["services"], scope, receive)
            elif scope["method"] == "GET" and (order := _is_order(scope["path"])):
                work = read(self.state["services"], scope, receive, order[1])
        if work is None:
            await super().__call__(scope, receive, send)
            return
        try:
            answer = await work
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
    answer = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(placed.answer)),
        (b"location", f"/orders/{text_of(placed.order_id)}".encode()),
    ]
    if placed.replayed:
        answer.append((b"idempotency-replayed", b"true"))
    return _answer(201, answer, placed.answer)


def place_new(
    services: Services, headers: Headers, caller: Caller, new: NewOrder | None, key: str | None
) -> Coroutine[Any, Any, Placed]:
    """Return once the order is committed with its event; `new` is None for the tutorial's order without lines.

    Raises Overloaded under back pressure, InvalidOrder, and the errors of `Services.place`.
    """
    services.back_pressure.check()
    traceparent = continue_trace(header_text(headers, b"traceparent"))
    return services.place(placement_of(new, client=caller.client, traceparent=traceparent, key=key), caller.until)


async def read(services: Services, scope: Scope, receive: Receive, order_id: str) -> ASGIApp:
    """Return the current state of an order, or, with `Prefer: wait=N`, its state after the next change.

    Raises OrderNotFound, TooManyRequests, and the errors of `Services.authenticate` and `Services.find`.
    """
    headers = headers_of(scope)
    caller = await services.authenticate(header_text(headers, b"authorization"), "orders:read")
    order = await find(services, caller, order_id)
    answer: list[tuple[bytes, bytes]] = []
    body = _encode(order)
    tag = preconditions.tag_of(body)
    known = header_text(headers, b"if-none-match")
    if prefer := header_text(headers, b"prefer"):
        seconds = preconditions.wait_of(prefer)
        if seconds is not None:
            answer.append((b"preference-applied", b"wait=%d" % seconds))
            # The current state is news already for a client that knows another one.
            is_news = known is not None and not preconditions.matches(known, tag)
            if not is_news and order.status not in TERMINAL:
                change = services.live.change(order.order_id, order.version, seconds, caller)
                if await unless_gone(receive, change):
                    caller = await services.authenticate(header_text(headers, b"authorization"), "orders:read")
                    body = _encode(await find(services, caller, order_id))
                    tag = preconditions.tag_of(body)
                elif not services.authenticator.is_valid(caller.key_id):
                    raise Unauthorized
    answer.append((b"etag", tag.encode()))
    if known is not None and preconditions.matches(known, tag):
        return _answer(304, answer, b"")
    return _answer(200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *answer], body)


async def find(services: Services, caller: Caller, order_id: str) -> Order:
    """Return an order of the caller's; raise OrderNotFound for another client's, and for what is no UUID."""
    return await services.find(OrderLookup(caller.client, uuid_of(order_id)), caller.until)


def uuid_of(order_id: str) -> UUID:
    """Return the id of an order; raise OrderNotFound if it is no UUID."""
    try:
        return UUID(order_id)
    except ValueError:
        raise OrderNotFound from None


async def unless_gone(receive: Receive, wait: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `wait`, or None once the client disconnects; the request's body is read already."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    waiting, leaving = asyncio.create_task(wait, name="wait"), asyncio.create_task(gone(), name="gone")
    try:
        await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()
        leaving.cancel()


def _answer(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> ASGIApp:
    """Return an answer, ready to be sent; Litestar's Response costs a tenth of a placement."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

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
