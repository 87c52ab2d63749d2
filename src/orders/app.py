"""The api process: `python -m orders.app`."""

import contextlib
import logging
import os
from collections.abc import AsyncIterator

import msgspec
from litestar import Litestar

from orders.api import health, openapi, problems, routes
from orders.api.auth import CONFIRM_SECONDS, Authenticator
from orders.api.back_pressure import MEASURE_SECONDS, BackPressure
from orders.api.fast_path import MAX_BODY_BYTES, Api
from orders.api.key_expiry import BUSY_SECONDS, KeyExpiry
from orders.api.live import TICK_SECONDS, Live
from orders.api.metrics import metrics
from orders.api.middleware import with_head, with_request_id
from orders.api.services import READ_SIZE, Services
from orders.api.shares import Shares
from orders.database import (
    api_keys_table,
    idempotency_keys_table,
    orders_table,
    outbox_table,
    place_orders,
    postgres,
)
from orders.database.batcher import Batcher, Limits
from orders.database.cancel_orders import Cancellation, Cancelled, cancel_orders
from orders.database.notify import RelayNotifier
from orders.database.orders_table import ScanPage, ScanStep
from orders.database.periodic import Job, Periodic
from orders.database.place_orders import Placed, Placement
from orders.database.reads import Found, Read, read, scan
from orders.runtime import http_server, process
from orders.runtime.settings import ApiSettings

LIST_IDLE_SECONDS = 5.0
MAX_LISTS = 16  # that an api reads at once; a client has its share of them

log = logging.getLogger("orders.app")


def writing_limits(settings: ApiSettings) -> Limits:
    """Return the bounds of the batches that place orders."""
    return Limits(
        writers=settings.orders_writers,
        batch_rows=settings.orders_batch_rows,
        batch_bytes=settings.orders_batch_bytes,
        queue_rows=settings.orders_queue_rows,
        queue_bytes=settings.orders_queue_bytes,
        patience=settings.orders_patience,
    )


def cancelling_limits(settings: ApiSettings) -> Limits:
    """Return the bounds of the batches that cancel orders."""
    return msgspec.structs.replace(writing_limits(settings), writers=1)


def reading_limits(settings: ApiSettings) -> Limits:
    """Return the bounds of the batches that look up orders and keys."""
    return Limits(
        batch_rows=200,
        queue_rows=settings.orders_queue_rows,
        queue_bytes=settings.orders_queue_rows * READ_SIZE,
        patience=settings.orders_patience,
    )


def listing_limits(settings: ApiSettings) -> Limits:
    """Return the bounds of the batches of steps down lists: small ones, since each step is a statement of its own.

    Few services list all the time, so the connection is there while it is used.
    """
    return msgspec.structs.replace(reading_limits(settings), batch_rows=4, idle_seconds=LIST_IDLE_SECONDS)


def create_app(settings: ApiSettings, live: Live) -> Api:
    """Build the application; its lifespan opens the connections of the writers, and one for each other purpose."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        url = settings.database_url
        authenticator = Authenticator(required=settings.orders_auth == "required")
        back_pressure = BackPressure(settings.orders_max_outbox_age)
        key_expiry = KeyExpiry(settings.orders_idempotency_retention)
        jobs = [
            Job(run=live.tick, every=TICK_SECONDS, wanted=live.is_watched),
            Job(run=authenticator.confirm, every=CONFIRM_SECONDS, wanted=authenticator.has_any),
            Job(run=back_pressure.measure, every=MEASURE_SECONDS, wanted=back_pressure.is_on),
            Job(run=key_expiry.run, every=BUSY_SECONDS, wanted=key_expiry.is_due),
        ]
        async with (
            RelayNotifier(url) as notifier,
            Batcher[Placement, Placed](
                "write",
                url,
                notifier.after(place_orders.place_orders),
                writing_limits(settings),
                mend=outbox_table.add_partitions,
                session=place_orders.PLANNED_ONCE,
            ) as writer,
            Batcher[Cancellation, Cancelled](
                "cancel",
                url,
                notifier.after(cancel_orders),
                cancelling_limits(settings),
                mend=outbox_table.add_partitions,
                session=place_orders.PLANNED_ONCE,
            ) as canceller,
            Batcher[Read, Found]("read", url, read, reading_limits(settings), session=orders_table.BY_INDEX) as reader,
            Batcher[ScanStep, ScanPage](
                "list", url, scan, listing_limits(settings), session=orders_table.BY_INDEX
            ) as lister,
            Periodic("watch", url, jobs, **orders_table.BY_INDEX) as periodic,
        ):
            live.on_first_watcher = periodic.soon
            authenticator.is_watching = live.is_watching
            authenticator.end_streams = live.end_streams
            app.state["services"] = Services(
                write=writer,
                write_cancel=canceller,
                read=reader,
                read_lists=lister,
                live=live,
                authenticator=authenticator,
                back_pressure=back_pressure,
                placements=Shares(settings.orders_queue_rows, settings.orders_client_share),
                lists=Shares(MAX_LISTS, settings.orders_client_share),
            )
            yield

    return Api(
        [*routes.HANDLERS, *health.HANDLERS, *openapi.HANDLERS, metrics],
        lifespan=[lifespan],
        exception_handlers=problems.HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=None,  # Litestar's own document does not tell all that we promise; openapi.py's does
        logging_config=None,
    )


async def serve(settings: ApiSettings) -> None:
    """Start, serve until a signal, and finish the requests that are in hand."""
    await postgres.require_database(
        settings.database_url,
        orders_table.COLUMNS_ARE_THERE,
        idempotency_keys_table.COLUMNS_ARE_THERE,
        api_keys_table.COLUMNS_ARE_THERE,
        outbox_table.COLUMNS_ARE_THERE,
    )
    live = Live(settings.orders_client_share)
    app = with_request_id(with_head(create_app(settings, live)))
    server = http_server.HttpServer(app, settings.orders_host, settings.orders_port, settings.orders_grace)

    def stop() -> None:
        live.close()
        server.stop()

    process.on_stop_signals(stop)
    process.spare_the_collector()
    process.take_all_descriptors()
    log.info("api %s listens on %s:%s", os.getpid(), settings.orders_host, settings.orders_port)
    await server.serve()
    log.info("api %s has stopped", os.getpid())


def main() -> None:
    """Run the api; settings come from the environment."""
    settings = ApiSettings.read_or_exit("orders.app")
    process.run("orders.app", lambda: serve(settings), settings.log_level)


if __name__ == "__main__":
    main()
