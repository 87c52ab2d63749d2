"""Our stack with a handler that does nothing: what uvicorn, Litestar and nginx leave for the work itself."""

import logging

import uvloop
from litestar import Litestar, Request, Response, get, post
from litestar.params import FromPath

from orders.api import problems
from orders.api.middleware import with_request_id
from orders.runtime import http_server, process
from orders.runtime.settings import ApiSettings

ANSWER = b'{"order_id":"019ae8a2-5f7a-7c3e-8b1d-2f60a4c1d9e7","status":"placed"}'
# As long as an order of two lines.
ORDER = (
    b'{"order_id":"019ae8a2-5f7a-7c3e-8b1d-2f60a4c1d9e7","status":"placed","version":1,"customer_id":"17850",'
    b'"currency":"GBP","lines":[{"sku":"85123A","quantity":6,"unit_price_minor":255,'
    b'"description":"WHITE HANGING HEART T-LIGHT HOLDER"},{"sku":"71053","quantity":6,"unit_price_minor":339,'
    b'"description":"WHITE METAL LANTERN"}],"total_minor":3564,"reference":"536365","attempts":0,"failure_reason":null,'
    b'"created_at":"2026-12-01T08:26:00.123456Z","updated_at":"2026-12-01T08:26:00.123456Z","finished_at":null}'
)


@post("/orders")
async def place(request: Request) -> Response[bytes]:  # type: ignore[type-arg]
    """Read the body, and answer always the same."""
    await request.body()
    return Response(ANSWER, status_code=201, media_type="application/json")


@get("/orders/{order_id:str}")
async def read(order_id: FromPath[str]) -> Response[bytes]:
    """Answer always the same."""
    return Response(ORDER, media_type="application/json")


@get(["/health", "/health/ready"])
async def ready() -> Response[bytes]:
    """Be ready."""
    return Response(b"{}", media_type="application/json")


async def serve() -> None:
    """Serve until a signal, exactly as orders.app does."""
    settings = ApiSettings.read()
    app = Litestar(
        [place, read, ready],
        exception_handlers=problems.HANDLERS,
        request_max_body_size=1 << 20,
        openapi_config=None,
        logging_config=None,
    )
    server = http_server.HttpServer(with_request_id(app), settings.orders_host, settings.orders_port, 1)
    process.on_stop_signals(server.stop)
    process.spare_the_collector()
    await server.serve()


if __name__ == "__main__":
    logging.basicConfig(level="WARNING")
    uvloop.run(serve())
