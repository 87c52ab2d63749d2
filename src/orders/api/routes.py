"""The HTTP routes and their handlers; orders.api.fast_path has the way that the two most frequent really take.

Every handler raises an error of orders.model.errors, BadRequest or HTTPException for a request that it refuses;
orders.api.problems turns it into the answer.
"""

import re
from typing import Any
from uuid import UUID

import msgspec
from litestar import HttpMethod, Request, Response, get, post, route
from litestar.params import FromPath
from litestar.response import Stream
from litestar.types import ASGIApp

from orders.api import batch, fast_path, listing, problems
from orders.api.auth import Caller
from orders.api.fast_path import Headers, header_text, headers_of
from orders.api.listing import Query
from orders.api.problems import BadRequest
from orders.api.services import Services, services_of
from orders.database.api_keys_table import Scope
from orders.database.cancel_orders import Cancellation
from orders.database.orders_table import StatusNow
from orders.model.order import TERMINAL, Order, Status
from orders.model.traceparent import continue_trace

AnyRequest = Request[Any, Any, Any]

_encode = msgspec.json.Encoder().encode


class TutorialOrder(msgspec.Struct, frozen=True):
    """An order as the tutorial's clients know it."""

    order_id: UUID
    status: Status


@post("/orders")
async def place_order(request: AnyRequest) -> ASGIApp:
    """Place an order: 201 once it is committed and flushed, with its event.

    Only another spelling of the path, such as `/orders/`, comes here; fast_path.Api serves `/orders` itself.
    """
    return await fast_path.place(services_of(request), request.scope, request.receive)


@post("/orders/batch", status_code=200)
async def place_orders(request: AnyRequest) -> ASGIApp:
    """Place an order for each line of the body: 200, with a line for the answer to each."""
    return await batch.place_batch(services_of(request), request.scope, request.receive)


@get("/orders")
async def list_orders(request: AnyRequest) -> Response[bytes]:
    """Return a page of the client's orders, newest first."""
    parameters = request.query_params
    names = list(parameters)
    if repeated := next((name for name in names if len(parameters.getall(name)) > 1), None):
        raise BadRequest(400, f"{repeated}: This parameter may be given once.", repeated)
    query: Query = problems.convert(Query, {name: parameters[name] for name in names})
    services = services_of(request)
    caller = await _caller_of(services, headers_of(request.scope), "orders:read")
    services.lists.take(caller.client)
    try:
        page = await listing.read_page(lambda step: services.scan(step, caller.until), caller.client, query)
    finally:
        services.lists.give_back(caller.client)
    return Response(_encode(page), media_type="application/json")


@route("/orders", http_method=[HttpMethod.OPTIONS], status_code=204)
async def orders_options() -> Response[None]:
    """Return the methods; with two handlers on one path, Litestar would name the first one's method only."""
    return Response(None, status_code=204, headers={"Allow": "GET, OPTIONS, POST"})


@get("/orders/{order_id:str}")
async def get_order(request: AnyRequest, order_id: FromPath[str]) -> ASGIApp:
    """Return the current state of an order, or, with `Prefer: wait=N`, its state after the next change.

    Only another spelling of the path, or of the id, comes here.
    """
    return await fast_path.read(services_of(request), request.scope, request.receive, order_id)


@post("/orders/{order_id:str}/cancel", status_code=200)
async def cancel_order(request: AnyRequest, order_id: FromPath[str]) -> Response[bytes]:
    """Cancel an order that no worker has claimed: 200 once that is committed, or was committed before."""
    services = services_of(request)
    headers = headers_of(request.scope)
    caller = await _caller_of(services, headers, "orders:cancel")
    cancellation = Cancellation(
        order_id=fast_path.uuid_of(order_id),
        client=caller.client,
        traceparent=continue_trace(header_text(headers, b"traceparent")),
        key=fast_path.idempotency_key(request.scope, headers),
    )
    cancelled = await services.cancel(cancellation, caller.until)
    replayed = {"Idempotency-Replayed": "true"} if cancelled.replayed else {}
    return Response(cancelled.answer, media_type="application/json", headers=replayed)


@get("/orders/{order_id:str}/events")
async def watch_order(request: AnyRequest, order_id: FromPath[str]) -> Response[bytes] | Stream:
    """Stream the order's status: the current one, then the newest after each change, until the order has ended."""
    services = services_of(request)
    caller = await _caller_of(services, headers_of(request.scope), "orders:read")
    order = await fast_path.find(services, caller, order_id)
    last_event_id = request.headers.get("last-event-id", "")
    seen = int(last_event_id) if re.fullmatch("[0-9]{1,9}", last_event_id) else None
    if order.status in TERMINAL and seen is not None and seen >= order.version:
        return Response(b"", status_code=204)  # an EventSource does not reconnect after a 204
    services.live.require_room(caller)
    now = StatusNow(order.order_id, order.status, order.version, order.failure_reason, order.updated_at)
    return Stream(
        services.live.events(now, seen, caller, services.authenticator.is_valid),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@post("/order/place", status_code=200)
async def place_tutorial_order(request: AnyRequest) -> Response[bytes]:
    """Place an order without customer and lines, as the tutorial's clients do; ignore the body."""
    services = services_of(request)
    headers = headers_of(request.scope)
    caller = await _caller_of(services, headers, "orders:place")
    placed = await fast_path.place_new(services, headers, caller, None, key=None)
    return Response(_encode(TutorialOrder(placed.order_id, "placed")), media_type="application/json", status_code=200)


@get("/order/get/{order_id:str}")
async def get_tutorial_order(request: AnyRequest, order_id: FromPath[str]) -> Response[bytes]:
    """Return an order as the tutorial's clients know it."""
    order = await _read(request, order_id)
    return Response(_encode(TutorialOrder(order.order_id, order.status)), media_type="application/json")


HANDLERS = [
    orders_options,  # before the other handlers of its path, or Litestar makes one
    place_order, place_orders, list_orders, get_order, cancel_order, watch_order, place_tutorial_order,
    get_tutorial_order,
]  # fmt: skip


async def _caller_of(services: Services, headers: Headers, scope: Scope) -> Caller:
    return await services.authenticate(header_text(headers, b"authorization"), scope)


async def _read(request: AnyRequest, order_id: str) -> Order:
    """Return an order of the request's client; raise OrderNotFound for another client's."""
    services = services_of(request)
    return await fast_path.find(
        services, await _caller_of(services, headers_of(request.scope), "orders:read"), order_id
    )
