"""HTTP in and out."""

import re
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, Response, get, post

from orders import problems
from orders.batching import Batching
from orders.errors import OrderNotFound, OrdersError
from orders.order import NewOrder, Order
from orders.place_orders import Placed, Placement, placement_of
from orders.problems import BadRequest
from orders.traceparent import continue_trace

ANONYMOUS = ""

Req = Request[Any, Any, Any]

_JSON = re.compile(r"application/json\s*(;.*)?", re.IGNORECASE).fullmatch
_KEY = re.compile(r"[\x21-\x7e]{1,255}").fullmatch
_new_order = msgspec.json.Decoder(NewOrder)
_encode = msgspec.json.Encoder().encode


class Services(msgspec.Struct, frozen=True):
    """What the handlers work with."""

    place: Batching[Placement, Placed]
    read: Batching[UUID, Order]


def services(request: Req) -> Services:
    """Return the services of this process."""
    return request.app.state["services"]  # type: ignore[no-any-return]


@post("/orders")
async def place_order(request: Req) -> Response[bytes]:
    """Place an order: 201 once it is committed, with its event, and flushed."""
    if not _JSON(request.headers.get("content-type", "")):
        raise BadRequest(415, "The body must be JSON: send Content-Type: application/json.", Accept="application/json")
    new = problems.decode(_new_order, await request.body())
    placed = await _place(request, new, key=idempotency_key(request))
    headers = {"Location": f"/orders/{placed.order_id}"}
    if placed.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(placed.answer, status_code=201, media_type="application/json", headers=headers)


@get("/orders/{order_id:str}")
async def get_order(request: Req, order_id: str) -> Response[bytes]:
    """Return an order as it is now."""
    return Response(_encode(await _read(request, order_id)), media_type="application/json")


class TutorialOrder(msgspec.Struct, frozen=True):
    """An order as the tutorial's clients know it."""

    order_id: UUID
    status: str


@post("/order/place", status_code=200)
async def place_tutorial_order(request: Req) -> Response[bytes]:
    """Place an order without customer and lines, as the tutorial's clients do; a body is not read."""
    placed = await _place(request, None, key=None)
    return Response(_encode(TutorialOrder(placed.order_id, "placed")), media_type="application/json", status_code=200)


@get("/order/get/{order_id:str}")
async def get_tutorial_order(request: Req, order_id: str) -> Response[bytes]:
    """Return an order as the tutorial's clients know it."""
    order = await _read(request, order_id)
    return Response(_encode(TutorialOrder(order.order_id, order.status)), media_type="application/json")


@get("/health")
async def health(request: Req) -> Response[bytes]:
    """Answer as the tutorial does, but for its `rabbitmq`: the api never talks to RabbitMQ."""
    database = "healthy" if await _database_answers(request) else "unhealthy"
    return Response(_encode({"status": database, "database": database}), media_type="application/json")


@get("/health/live")
async def live() -> Response[bytes]:
    """Answer at all: then the main loop turns."""
    return Response(b'{"live":true}', media_type="application/json")


@get("/health/ready")
async def ready(request: Req) -> Response[bytes]:
    """Say whether the database answers and takes placements."""
    is_ready = services(request).place.connections > 0 and await _database_answers(request)
    return Response(_encode({"ready": is_ready}), media_type="application/json", status_code=200 if is_ready else 503)


HANDLERS = [
    place_order, get_order, place_tutorial_order, get_tutorial_order, health, live, ready
]  # fmt: skip


def idempotency_key(request: Req) -> str | None:
    """Return the request's Idempotency-Key as it came; raise BadRequest if it is malformed."""
    given = request.headers.getall("idempotency-key", [])
    if not given:
        return None
    if len(given) > 1 or not _KEY(given[0]):
        raise BadRequest(400, "Idempotency-Key must be one value of 1 to 255 visible ASCII characters.")
    return given[0]


async def _place(request: Req, new: NewOrder | None, key: str | None) -> Placed:
    traceparent = continue_trace(request.headers.get("traceparent"))
    placement = placement_of(new, client=ANONYMOUS, traceparent=traceparent, key=key)
    return await services(request).place(placement, placement.size)


async def _read(request: Req, order_id: str) -> Order:
    try:
        wanted = UUID(order_id)
    except ValueError:
        raise OrderNotFound from None
    return await services(request).read(wanted)


async def _database_answers(request: Req) -> bool:
    """Ask for an order that cannot exist."""
    try:
        await services(request).read(UUID(int=0))
    except OrderNotFound:
        return True
    except OrdersError:
        return False
    return True
