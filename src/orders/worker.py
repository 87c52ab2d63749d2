"""The worker process: `python -m orders.worker`."""

import asyncio
import logging
import os
from collections.abc import Sequence

import msgspec
from litestar import Litestar, Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from psycopg import AsyncConnection

from orders import (
    claim_orders,
    finish_orders,
    handlers,
    orders_table,
    outbox_table,
    problems,
    serving,
    startup,
    topology,
)
from orders.batching import Batching, Limits
from orders.claim_orders import Claim, Wanted
from orders.consumer import Consumer
from orders.finish_orders import Finish
from orders.handlers import Handler
from orders.liveness import Liveness
from orders.settings import WorkerSettings
from orders.topology import WORK_QUEUE
from orders.wake_up import WakeUp
from orders.work import Work

log = logging.getLogger("orders.worker")


def create_health(work: Work, consumer: Consumer, liveness: Liveness) -> Litestar:
    """Build the worker's own little HTTP application."""

    @get("/health/live")
    async def live() -> Response[bytes]:
        return _json(200, {"live": True})

    @get("/health/ready")
    async def ready() -> Response[bytes]:
        is_ready = consumer.connected and liveness.held.is_set() and work.claim.connections > 0
        return _json(200 if is_ready else 503, {"ready": is_ready, **status_of()})

    @get("/status")
    async def status() -> Response[bytes]:
        return _json(200, status_of())

    @get("/metrics")
    async def metrics() -> Response[bytes]:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    def status_of() -> dict[str, object]:
        return {
            "in_hand": work.in_hand,
            "done": work.done,
            "failed": work.failed,
            "broker": "connected" if consumer.connected else "disconnected",
            "database": "connected" if liveness.held.is_set() and work.finish.connections else "disconnected",
        }

    return Litestar(
        [live, ready, status, metrics], exception_handlers=problems.HANDLERS, openapi_config=None, logging_config=None
    )


def _json(status_code: int, content: dict[str, object]) -> Response[bytes]:
    return Response(msgspec.json.encode(content), status_code=status_code, media_type="application/json")


async def serve(settings: WorkerSettings, handler: Handler) -> None:
    """Start, work until a signal, finish what is in hand."""
    url = settings.database_url
    await startup.require_database(url, orders_table.COLUMNS_ARE_THERE, outbox_table.COLUMNS_ARE_THERE)
    await topology.wait_and("verify", settings.amqp_url, startup.WAIT_SECONDS)

    stop = asyncio.Event()
    serving.on_stop_signals(stop.set)
    limits = Limits(batch_rows=256, queue_rows=2 * settings.worker_concurrency + 100)
    async with WakeUp(url) as wake_up, Liveness(url) as liveness:

        async def claim(conn: AsyncConnection, batch: Sequence[Wanted]) -> list[Claim]:
            await liveness.held.wait()  # a claim without the lock would look like that of a dead worker
            return await claim_orders.claim_orders(conn, liveness.number, batch)

        async def finish(conn: AsyncConnection, batch: Sequence[Finish]) -> Sequence[bool]:
            answers = await finish_orders.finish_orders(conn, batch)
            wake_up.soon()
            return answers

        async with (
            Batching[Wanted, Claim]("claim", url, claim, limits) as claiming,
            Batching("finish", url, finish, limits, mend=outbox_table.add_partitions) as finishing,
        ):
            work = Work(
                claiming, finishing, handler, timeout=settings.work_timeout, max_failures=settings.work_max_attempts
            )
            consumer = Consumer(settings.amqp_url, WORK_QUEUE, settings.worker_concurrency, work.take)
            server = serving.HttpServer(
                create_health(work, consumer, liveness), settings.worker_host, settings.worker_port, 1
            )
            consuming = asyncio.create_task(consumer.run(), name="consumer")
            health = asyncio.create_task(server.serve(), name="health")
            log.info("worker %s runs %s, health on port %s", os.getpid(), settings.orders_handler, settings.worker_port)

            waits = [consuming, health, *(asyncio.create_task(e.wait(), name="stop") for e in (stop, work.crashed))]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)

            consumer.stop()
            left = await work.drain(settings.worker_grace - 1)
            consumer.finish()
            server.stop()
            for wait in waits[2:]:
                wait.cancel()
            await asyncio.gather(consuming, health)
            log.info(
                "worker %s has stopped: %s done, %s failed, %s handed back", os.getpid(), work.done, work.failed, left
            )
            work.raise_crash()


def main() -> None:
    """Run the worker; settings come from the environment."""
    settings = WorkerSettings.read_or_exit("orders.worker")
    startup.run("orders.worker", lambda: serve(settings, handlers.load(settings.orders_handler)), settings.log_level)


if __name__ == "__main__":
    main()
