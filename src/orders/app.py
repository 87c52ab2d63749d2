"""The api process: `python -m orders.app`."""

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Sequence

from litestar import Litestar, get
from litestar.response import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from psycopg import AsyncConnection

from orders import api, keys_table, openapi, orders_table, outbox_table, place_orders, problems, serving, startup
from orders.batching import Batching, Limits
from orders.errors import OrdersError
from orders.place_orders import Placed, Placement
from orders.settings import ApiSettings
from orders.wake_up import WakeUp

log = logging.getLogger("orders.app")


@get("/metrics")
async def metrics() -> Response[bytes]:
    """Prometheus metrics of this process."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def create_app(settings: ApiSettings) -> Litestar:
    """Build the application; its connections open with its lifespan."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        url = settings.database_url
        async with WakeUp(url) as wake_up:

            async def place(conn: AsyncConnection, batch: Sequence[Placement]) -> Sequence[Placed | OrdersError]:
                answers = await place_orders.place_orders(conn, batch)
                wake_up.soon()
                return answers

            writing = Limits(
                writers=settings.orders_writers,
                batch_rows=settings.orders_batch_rows,
                batch_bytes=settings.orders_batch_bytes,
                queue_rows=settings.orders_queue_rows,
                queue_bytes=settings.orders_queue_bytes,
                patience=settings.orders_patience,
            )
            reading = Limits(batch_rows=200, queue_rows=settings.orders_queue_rows, patience=settings.orders_patience)
            async with (
                Batching("place", url, place, writing, mend=outbox_table.add_partitions) as placing,
                Batching("read", url, orders_table.read_many, reading) as lookup,
            ):
                app.state["services"] = api.Services(place=placing, read=lookup)
                yield

    return Litestar(
        [*api.HANDLERS, *openapi.HANDLERS, metrics],
        lifespan=[lifespan],
        exception_handlers=problems.HANDLERS,
        request_max_body_size=1 << 20,
        openapi_config=None,  # Litestar's own document does not tell all that we promise; openapi.py's does
        logging_config=None,
    )


async def serve(settings: ApiSettings) -> None:
    """Start, serve until a signal, finish what is in hand."""
    await startup.require_database(
        settings.database_url,
        orders_table.COLUMNS_ARE_THERE,
        keys_table.COLUMNS_ARE_THERE,
        outbox_table.COLUMNS_ARE_THERE,
    )
    server = serving.HttpServer(create_app(settings), settings.orders_host, settings.orders_port, settings.orders_grace)
    serving.on_stop_signals(server.stop)
    log.info("api %s listens on %s:%s", os.getpid(), settings.orders_host, settings.orders_port)
    await server.serve()
    log.info("api %s has stopped", os.getpid())


def main() -> None:
    """Run the api; settings come from the environment."""
    settings = ApiSettings.read_or_exit("orders.app")
    startup.run("orders.app", lambda: serve(settings), settings.log_level)


if __name__ == "__main__":
    main()
