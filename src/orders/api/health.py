"""The routes /health, /health/live and /health/ready."""

import asyncio
from typing import Any, Literal
from uuid import UUID

import msgspec
from litestar import Request, Response, get

from orders.api.auth import ANONYMOUS
from orders.api.services import Services, services_of
from orders.database.orders_table import OrderLookup
from orders.model.errors import OrderNotFound, OrdersError

CHECK_SECONDS = 1.0  # how long all requests for /health share one look at the database

AnyRequest = Request[Any, Any, Any]

_encode = msgspec.json.Encoder().encode


class Health(msgspec.Struct, frozen=True):
    """How the service is: each `healthy` or `unhealthy`."""

    status: Literal["healthy", "unhealthy"]
    database: Literal["healthy", "unhealthy"]


class SharedCheck:
    """A look at the database that many requests share, since everybody may ask for /health as often as they like."""

    def __init__(self) -> None:
        self._checking: asyncio.Task[bool] | None = None
        self._fresh_until = float("-inf")

    async def database_answers(self, services: Services) -> bool:
        """Return whether the database answered a look-up that began less than CHECK_SECONDS ago."""
        now = asyncio.get_running_loop().time()
        if self._checking is None or now > self._fresh_until:
            self._fresh_until = now + CHECK_SECONDS
            self._checking = asyncio.create_task(database_answers(services), name="health")
        return await asyncio.shield(self._checking)  # a client that leaves ends nobody else's check


async def database_answers(services: Services) -> bool:
    """Look up an order that cannot exist."""
    try:
        await services.find(OrderLookup(ANONYMOUS, UUID(int=0)), None)
    except OrderNotFound:
        return True
    except OrdersError:
        return False
    return True


@get("/health")
async def health(request: AnyRequest) -> Response[bytes]:
    """Answer as the tutorial does, without its field `rabbitmq`: the api never connects to RabbitMQ."""
    check: SharedCheck = request.app.state.setdefault("health", SharedCheck())
    answers = await check.database_answers(services_of(request))
    database: Literal["healthy", "unhealthy"] = "healthy" if answers else "unhealthy"
    return Response(_encode(Health(database, database)), media_type="application/json")


@get("/health/live")
async def live() -> Response[bytes]:
    """Answer: an answer shows that the event loop runs."""
    return Response(b'{"live":true}', media_type="application/json")


@get("/health/ready")
async def ready(request: AnyRequest) -> Response[bytes]:
    """Return 200 if the database answers and at least one writer is connected, else 503."""
    services = services_of(request)
    is_ready = services.write.connections > 0 and await database_answers(services)
    return Response(_encode({"ready": is_ready}), media_type="application/json", status_code=200 if is_ready else 503)


HANDLERS = [health, live, ready]
