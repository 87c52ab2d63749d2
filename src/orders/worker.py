"""The worker process: `python -m orders.worker`."""

import asyncio
import faulthandler
import logging
import os
from collections.abc import Callable, Sequence
from uuid import UUID

import msgspec
import psycopg
from litestar import Litestar, Response, get
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
from psycopg import AsyncConnection

from orders import handlers
from orders.api import problems
from orders.broker import topology
from orders.broker.consumer import Consumer
from orders.broker.topology import WORK_QUEUE
from orders.database import (
    claim_orders,
    dead_letters_table,
    finish_orders,
    orders_table,
    outbox_table,
    postgres,
    postpone_orders,
    retries_table,
)
from orders.database.batcher import Batcher, Limits
from orders.database.claim_orders import Claim
from orders.database.dead_letters_table import DeadLetter, PoisonMark
from orders.database.finish_orders import Finish, Finished
from orders.database.notify import RelayNotifier
from orders.database.worker_lock import WorkerLock
from orders.handlers import Handler
from orders.model.error_text import first_line
from orders.model.work_message import WorkMessage
from orders.runtime import http_server, process
from orders.runtime.settings import WorkerSettings
from orders.work.crash_isolation import CrashIsolation
from orders.work.dead_letter_mover import DeadLetterMover
from orders.work.delivery import OrdersInHand, WorkBatches
from orders.work.due_retries import Retries
from orders.work.runner import Runner

log = logging.getLogger("orders.worker")

BROKER = Gauge("orders_worker_broker_connected", "1 while the work queue is consumed")
DATABASE = Gauge("orders_worker_database_connected", "1 while every statement has its connection")

# Of the grace after SIGTERM: what is left, once the handlers had theirs, to hand back and to close.
CLOSING_SECONDS = 2.0
# Beyond WORK_TIMEOUT, after which a main loop that does not turn is held up by a handler for good.
BLOCKED_SECONDS = 10.0


class WorkerHealth(msgspec.Struct, frozen=True):
    """The parts whose state makes up the worker's health."""

    orders: OrdersInHand
    consumer: Consumer
    worker_lock: WorkerLock
    retries: Retries
    dead_letters: DeadLetterMover
    unconnected: Callable[[], int]  # how many of the batches have no connection

    def status(self) -> dict[str, object]:
        """Return what /status tells."""
        return {
            "in_hand": self.orders.in_hand,
            "waiting_for_retry": self.retries.waiting,  # of all workers
            **msgspec.structs.asdict(self.orders.counters),
            "buried": self.dead_letters.buried,
            "broker": "connected" if self.consumer.connected else "disconnected",
            "database": "connected" if self.is_database_connected() else "disconnected",
        }

    def is_database_connected(self) -> bool:
        """Whether every statement has its connection, and the lock is held that shows us alive."""
        return self.worker_lock.held.is_set() and self.unconnected() == 0

    def is_ready(self) -> bool:
        """Whether broker and database are connected."""
        return self.consumer.connected and self.is_database_connected()


def create_health(health: WorkerHealth) -> Litestar:
    """Build the worker's own little HTTP application."""

    BROKER.set_function(lambda: health.consumer.connected)
    DATABASE.set_function(health.is_database_connected)

    @get("/health/live")
    async def live() -> Response[bytes]:
        return _json(200, {"live": True})

    @get("/health/ready")
    async def ready() -> Response[bytes]:
        is_ready = health.is_ready()
        return _json(200 if is_ready else 503, {"ready": is_ready, **health.status()})

    @get("/status")
    async def status() -> Response[bytes]:
        return _json(200, health.status())

    @get("/metrics")
    async def metrics() -> Response[bytes]:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return Litestar(
        [live, ready, status, metrics], exception_handlers=problems.HANDLERS, openapi_config=None, logging_config=None
    )


def _json(status_code: int, content: dict[str, object]) -> Response[bytes]:
    return Response(msgspec.json.encode(content), status_code=status_code, media_type="application/json")


async def watch_the_loop(timeout: float) -> None:
    """End the process, with a traceback, if a handler stops the main loop from turning.

    What was in hand is then under suspicion, and the one that is guilty is found in a child process.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(timeout + BLOCKED_SECONDS, exit=True)
            await asyncio.sleep(1)
    finally:
        faulthandler.cancel_dump_traceback_later()


async def serve(settings: WorkerSettings, handler: Handler) -> None:
    """Start, work until a signal, finish what is in hand or hand it back."""
    url = settings.database_url
    await postgres.require_database(
        url,
        orders_table.COLUMNS_ARE_THERE,
        outbox_table.COLUMNS_ARE_THERE,
        retries_table.COLUMNS_ARE_THERE,
        dead_letters_table.COLUMNS_ARE_THERE,
    )
    await topology.wait_and("verify", settings.amqp_url, process.WAIT_SECONDS)

    stop = asyncio.Event()
    process.on_stop_signals(stop.set)
    # Bounded by the prefetch, and by nothing else: an order that is in hand always gets its turn.
    limits = Limits(batch_rows=256, queue_rows=1_000_000)
    runner = Runner(handler, url, timeout=settings.work_timeout)
    async with (
        RelayNotifier(url) as notifier,
        WorkerLock(url) as worker_lock,
        CrashIsolation(timeout=settings.work_timeout) as crash_isolation,
    ):

        async def claim(conn: AsyncConnection, batch: Sequence[WorkMessage]) -> list[Claim]:
            await worker_lock.require()  # a claim without the lock would look like that of a dead worker
            return await claim_orders.claim_orders(conn, worker_lock.number, batch)

        async def finish(conn: AsyncConnection, batch: Sequence[Finish]) -> Sequence[Finished | None]:
            answers = await finish_orders.finish_orders(conn, batch)
            notifier.soon(len(batch))
            return answers

        async def store_dead_letters(conn: AsyncConnection, batch: Sequence[PoisonMark | DeadLetter]) -> Sequence[None]:
            answers = await dead_letters_table.store(conn, batch)
            notifier.soon(len(batch))
            return answers

        async with (
            Batcher[WorkMessage, Claim]("claim", url, claim, limits) as claiming,
            Batcher("finish", url, finish, limits, mend=outbox_table.add_partitions) as finishing,
            Batcher("postpone", url, postpone_orders.postpone_orders, limits) as postponing,
            Batcher("bury", url, store_dead_letters, limits, mend=outbox_table.add_partitions) as storing,
            Retries(url, notifier.soon) as retries,
            DeadLetterMover(settings.amqp_url, storing) as dead_letters,
        ):
            work = OrdersInHand(
                WorkBatches(claiming, finishing, postponing, storing),
                runner,
                crash_isolation,
                max_failures=settings.work_max_attempts,
                at_once=settings.work_connections if runner.wants_connection else None,
            )
            consumer = Consumer(settings.amqp_url, WORK_QUEUE, settings.worker_concurrency, work.take)
            batches = (claiming, finishing, postponing, storing)
            worker_health = WorkerHealth(
                work,
                consumer,
                worker_lock,
                retries,
                dead_letters,
                lambda: sum(not each.connections for each in batches),
            )
            server = http_server.HttpServer(create_health(worker_health), settings.worker_host, settings.worker_port, 1)
            consuming = asyncio.create_task(consumer.run(), name="consumer")
            health = asyncio.create_task(server.serve(), name="health")
            watching = asyncio.create_task(watch_the_loop(settings.work_timeout), name="watchdog")
            log.info("worker %s runs %s, health on port %s", os.getpid(), settings.orders_handler, settings.worker_port)

            waits = [consuming, health, *(asyncio.create_task(e.wait(), name="stop") for e in (stop, work.crashed))]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)

            consumer.stop()
            in_hand = await work.drain(max(0.0, settings.worker_grace - CLOSING_SECONDS), runner.sever)
            left = await hand_back(url, worker_lock.number, in_hand)
            consumer.finish()
            server.stop()
            for task in (*waits[2:], watching):
                task.cancel()
            await asyncio.gather(consuming, health)
            await runner.close()
            log.info("worker %s has stopped: %s, %s handed back", os.getpid(), work.counters, left)
            work.raise_crash()


async def hand_back(url: str, worker: int, in_hand: Sequence[UUID]) -> int:
    """Let others take what we still have, at once and without suspicion; return how many orders that were.

    If it fails, they take them all the same, with suspicion.
    """
    if not in_hand:
        return 0
    conn = None
    try:
        conn = await postgres.connect(url, "orders-hand-back")
        with postgres.deadline(conn, CLOSING_SECONDS / 4):
            return await claim_orders.hand_back(conn, worker, in_hand)
    except psycopg.Error as error:
        log.warning("could not hand back %s orders: %s", len(in_hand), first_line(error))
        return 0
    finally:
        await postgres.close(conn)


def main() -> None:
    """Run the worker; settings come from the environment."""
    settings = WorkerSettings.read_or_exit("orders.worker")
    process.run("orders.worker", lambda: serve(settings, handlers.load(settings.orders_handler)), settings.log_level)


if __name__ == "__main__":
    main()
