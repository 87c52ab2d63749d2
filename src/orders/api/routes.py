"""HTTP in and out."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar, cast
from uuid import UUID

import msgspec
from litestar import HttpMethod, Litestar, Request, Response, get, post, route
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.params import FromPath
from litestar.response import Stream
from litestar.types import ASGIApp, Receive, Scope, Send

from orders.api import listing, preconditions, problems
from orders.api.auth import ANONYMOUS, Authenticator
from orders.api.back_pressure import BackPressure
from orders.api.listing import Query
from orders.api.live import Live
from orders.api.problems import BadRequest
from orders.database.api_keys_table import ClientKey, KeyId
from orders.database.batcher import Batcher
from orders.database.cancel_orders import Cancellation, Cancelled
from orders.database.orders_table import OrderLookup, ScanPage, ScanStep, StatusNow
from orders.database.place_orders import Placed, Placement, placement_of
from orders.database.reads import Found, Read
from orders.database.writes import Write, Written
from orders.model.errors import OrderNotFound, OrdersError
from orders.model.ids import text_of
from orders.model.order import TERMINAL, NewOrder, Order, Status
from orders.model.traceparent import continue_trace

# What a read counts for in a batch of them, in bytes. Nobody knows yet how large an order is: few have more than this,
# and a batch of the largest is still bounded. Of steps down a list few stand together in front of a GET.
READ_SIZE = 1 << 16
SCAN_SIZE = 1 << 20

MAX_BODY_BYTES = 1 << 20

Req = Request[Any, Any, Any]
T = TypeVar("T")

_JSON = re.compile(rb"application/json\s*(;.*)?", re.IGNORECASE).fullmatch
_KEY = re.compile(rb"[\x21-\x7e]{1,255}").fullmatch
_new_order = msgspec.json.Decoder(NewOrder)
_encode = msgspec.json.Encoder().encode


class Caller(msgspec.Struct, frozen=True):
    """Whom a request speaks for, and when its patience ends if that began already, in the loop's time."""

    client: str
    until: float | None


class Services(msgspec.Struct, frozen=True):
    """What the handlers work with."""

    write: Batcher[Write, Written]
    read: Batcher[Read, Found]
    live: Live
    authenticator: Authenticator
    back_pressure: BackPressure

    async def place(self, placement: Placement, until: float | None) -> Placed:
        """Return once the order is committed."""
        return cast(Placed, await self.write(placement, placement.size, until))

    async def cancel(self, cancellation: Cancellation, until: float | None) -> Cancelled:
        """Return once the cancellation is committed."""
        return cast(Cancelled, await self.write(cancellation, cancellation.size, until))

    async def find(self, lookup: OrderLookup, until: float | None) -> Order:
        """Return an order as it is now; raise OrderNotFound also when it is another client's."""
        return cast(Order, await self.read(lookup, READ_SIZE, until))

    async def find_key(self, key_id: KeyId, until: float | None) -> ClientKey | None:
        """Return an API key, if it is there and valid."""
        return cast(ClientKey | None, await self.read(key_id, until=until))

    async def scan(self, step: ScanStep, until: float | None) -> ScanPage:
        """Return what a step down a list finds."""
        return cast(ScanPage, await self.read(step, SCAN_SIZE, until))


def services_of(request: Req) -> Services:
    """Return the services of this process."""
    return request.app.state["services"]  # type: ignore[no-any-return]


@post("/orders")
async def place_order(request: Req) -> ASGIApp:
    """Place an order: 201 once it is committed, with its event, and flushed."""
    return await place(services_of(request), request.scope, request.receive)


async def place(services: Services, scope: Scope, receive: Receive) -> ASGIApp:
    """Place the order of a request, and return the answer to it."""
    given = headers_of(scope)
    caller = await caller_of(services, given)
    if not _JSON(given.get(b"content-type", b"")):
        raise BadRequest(415, "The body must be JSON: send Content-Type: application/json.", Accept="application/json")
    key = idempotency_key(scope, given)
    new = problems.decode(_new_order, await body_of(receive))
    placed = await _place(services, given, caller, new, key)
    return created(placed)


def created(placed: Placed) -> ASGIApp:
    """Build the answer to a placement, as it goes out: Litestar's own response costs a tenth of one."""
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


@get("/orders")
async def list_orders(request: Req) -> Response[bytes]:
    """Return a page of the client's orders, newest first."""
    given = request.query_params
    names = list(given)
    if repeated := next((name for name in names if len(given.getall(name)) > 1), None):
        raise BadRequest(400, f"{repeated}: This parameter may be given once.", repeated)
    query: Query = problems.convert(Query, {name: given[name] for name in names})
    caller = await caller_of(services_of(request), headers_of(request.scope))
    page = await listing.read_page(lambda step: services_of(request).scan(step, caller.until), caller.client, query)
    return Response(_encode(page), media_type="application/json")


@route("/orders", http_method=[HttpMethod.OPTIONS], status_code=204)
async def orders_options() -> Response[None]:
    """Say what can be done; of two handlers on one path Litestar would name the first one's method only."""
    return Response(None, status_code=204, headers={"Allow": "GET, OPTIONS, POST"})


@get("/orders/{order_id:str}")
async def get_order(request: Req, order_id: FromPath[str]) -> Response[bytes]:
    """Return an order as it is now, or, with `Prefer: wait=N`, once its status has changed."""
    order = await _read(request, order_id)
    headers = {}
    body = _encode(order)
    tag = preconditions.tag_of(body)
    known = request.headers.get("if-none-match")
    if prefer := request.headers.get("prefer"):
        seconds = preconditions.wait_of(prefer)
        if seconds is not None:
            headers["Preference-Applied"] = f"wait={seconds}"
            # A client that knows another state than this one has its news already.
            is_news = known is not None and not preconditions.matches(known, tag)
            if not is_news and order.status not in TERMINAL:
                change = services_of(request).live.change(order.order_id, order.version, seconds)
                if await unless_gone(request, change):
                    body = _encode(await _read(request, order_id))
                    tag = preconditions.tag_of(body)
    headers["ETag"] = tag
    if known is not None and preconditions.matches(known, tag):
        return Response(b"", status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@post("/orders/{order_id:str}/cancel", status_code=200)
async def cancel_order(request: Req, order_id: FromPath[str]) -> Response[bytes]:
    """Cancel an order that nobody works yet: 200 once that is committed, also when it was before."""
    services = services_of(request)
    given = headers_of(request.scope)
    caller = await caller_of(services, given)
    cancellation = Cancellation(
        order_id=_uuid(order_id),
        client=caller.client,
        traceparent=continue_trace(_text(given, b"traceparent")),
        key=idempotency_key(request.scope, given),
    )
    cancelled = await services.cancel(cancellation, caller.until)
    headers = {"Idempotency-Replayed": "true"} if cancelled.replayed else {}
    return Response(cancelled.answer, media_type="application/json", headers=headers)


@get("/orders/{order_id:str}/events")
async def watch_order(request: Req, order_id: FromPath[str]) -> Response[bytes] | Stream:
    """Stream the order's status: as it is now, then whenever it changes, to the end."""
    order = await _read(request, order_id)
    given = request.headers.get("last-event-id", "")
    seen = int(given) if re.fullmatch("[0-9]{1,9}", given) else None
    if order.status in TERMINAL and seen is not None and seen >= order.version:
        return Response(b"", status_code=204)  # tells an EventSource to come no more
    now = StatusNow(order.order_id, order.status, order.version, order.failure_reason, order.updated_at)
    return Stream(
        services_of(request).live.events(now, seen),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


class TutorialOrder(msgspec.Struct, frozen=True):
    """An order as the tutorial's clients know it."""

    order_id: UUID
    status: Status


@post("/order/place", status_code=200)
async def place_tutorial_order(request: Req) -> Response[bytes]:
    """Place an order without customer and lines, as the tutorial's clients do; a body is not read."""
    services = services_of(request)
    given = headers_of(request.scope)
    placed = await _place(services, given, await caller_of(services, given), None, key=None)
    return Response(_encode(TutorialOrder(placed.order_id, "placed")), media_type="application/json", status_code=200)


@get("/order/get/{order_id:str}")
async def get_tutorial_order(request: Req, order_id: FromPath[str]) -> Response[bytes]:
    """Return an order as the tutorial's clients know it."""
    order = await _read(request, order_id)
    return Response(_encode(TutorialOrder(order.order_id, order.status)), media_type="application/json")


class Health(msgspec.Struct, frozen=True):
    """How the service is: each `healthy` or `unhealthy`."""

    status: Literal["healthy", "unhealthy"]
    database: Literal["healthy", "unhealthy"]


@get("/health")
async def health(request: Req) -> Response[bytes]:
    """Answer as the tutorial does, but for its `rabbitmq`: the api never talks to RabbitMQ."""
    database: Literal["healthy", "unhealthy"] = "healthy" if await _database_answers(request) else "unhealthy"
    return Response(_encode(Health(database, database)), media_type="application/json")


@get("/health/live")
async def live() -> Response[bytes]:
    """Answer at all: then the main loop turns."""
    return Response(b'{"live":true}', media_type="application/json")


@get("/health/ready")
async def ready(request: Req) -> Response[bytes]:
    """Say whether the database answers and takes placements."""
    is_ready = services_of(request).write.connections > 0 and await _database_answers(request)
    return Response(_encode({"ready": is_ready}), media_type="application/json", status_code=200 if is_ready else 503)


class Api(Litestar):
    """Litestar, but that a placement goes straight to its handler.

    Litestar's way there (its router, the handler's signature, its own answer) costs 40 us of CPU: as much as all that
    we do with a placement before it is written. Errors are answered by the same table on both ways.
    """

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


HANDLERS = [
    orders_options,  # before the others on its path, or Litestar makes one of its own
    place_order, list_orders, get_order, cancel_order, watch_order, place_tutorial_order, get_tutorial_order, health,
    live, ready,
]  # fmt: skip


Headers = dict[bytes, bytes]


def headers_of(scope: Scope) -> Headers:
    """Return the headers by their names; of one that is repeated, the last.

    Litestar's own mapping costs a tenth of a placement, since it is made for every case there is.
    """
    return dict(scope["headers"])


def _text(given: Headers, name: bytes) -> str | None:
    value = given.get(name)
    return None if value is None else value.decode("latin-1")


async def body_of(receive: Receive) -> bytes:
    """Return the body, which Litestar's own way reads only after it has made its mapping of the headers."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":  # then the client is gone
            raise BadRequest(400, "The body ended before it was whole.")
        piece = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise RequestEntityTooLarge
        if not message.get("more_body"):
            return b"".join(pieces)


async def unless_gone(request: Req, wait: Coroutine[Any, Any, T]) -> T | None:
    """Wait, but no longer than the client does: None if it has hung up. Its request has been read to the end."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waiting, leaving = asyncio.create_task(wait, name="wait"), asyncio.create_task(gone(), name="gone")
    try:
        await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()
        leaving.cancel()


def idempotency_key(scope: Scope, given: Headers) -> str | None:
    """Return the request's Idempotency-Key as it came; raise BadRequest if it is malformed."""
    key = given.get(b"idempotency-key")
    if key is None:
        return None
    times = sum(name == b"idempotency-key" for name, _ in scope["headers"])
    if times > 1 or not _KEY(key):
        raise BadRequest(400, "Idempotency-Key must be one value of 1 to 255 visible ASCII characters.")
    return key.decode("ascii")


async def caller_of(services: Services, given: Headers) -> Caller:
    """Return whom the request speaks for; raise Unauthorized if its key is for nobody.

    A key that has to be looked up uses up some of the one patience that a request has.
    """
    until: float | None = None

    async def find(key_id: KeyId) -> ClientKey | None:
        nonlocal until
        until = services.read.patience_ends()
        return await services.find_key(key_id, until)

    client = await services.authenticator.client_of(_text(given, b"authorization"), find)
    return Caller(client, until)


async def _place(services: Services, given: Headers, caller: Caller, new: NewOrder | None, key: str | None) -> Placed:
    services.back_pressure.check()
    traceparent = continue_trace(_text(given, b"traceparent"))
    return await services.place(placement_of(new, client=caller.client, traceparent=traceparent, key=key), caller.until)


async def _read(request: Req, order_id: str) -> Order:
    """Return an order of the request's client; another's is not there."""
    services = services_of(request)
    caller = await caller_of(services, headers_of(request.scope))
    return await services.find(OrderLookup(caller.client, _uuid(order_id)), caller.until)


def _uuid(order_id: str) -> UUID:
    """Return the id of an order; what is no id at all is nobody's order."""
    try:
        return UUID(order_id)
    except ValueError:
        raise OrderNotFound from None


async def _database_answers(request: Req) -> bool:
    """Ask for an order that cannot exist."""
    try:
        await services_of(request).find(OrderLookup(ANONYMOUS, UUID(int=0)), None)
    except OrderNotFound:
        return True
    except OrdersError:
        return False
    return True
