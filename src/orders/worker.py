"""The worker process: `python -m orders.worker`.

It claims the orders that the work queue asks for, runs the handler of each and writes its end. `work/` has the parts;
here they are put together, with the health server.
"""

import asyncio
import logging
import os

import msgspec
from litestar import Litestar, Response, get

from orders import handlers
from orders.api import problems
from orders.api.metrics import metrics
from orders.broker import topology
from orders.broker.consumer import Consumer, Delivery
from orders.broker.policy_watch import PolicyWatch
from orders.broker.topology import WORK_QUEUE
from orders.database import (
    attempt_log,
    dead_letters_table,
    orders_table,
    outbox_table,
    postgres,
    retries_table,
    stragglers_table,
)
from orders.database.notify import RelayNotifier
from orders.database.worker_lock import WorkerLock
from orders.handlers import Handler
from orders.runtime import process
from orders.runtime.crash import stop_the_process_if_it_crashed
from orders.runtime.http_server import HttpServer
from orders.runtime.settings import WorkerSettings
from orders.work.batches import WorkBatches
from orders.work.crash_isolation import CrashIsolation
from orders.work.dead_letter_mover import DeadLetterMover
from orders.work.delivery import OrdersInHand
from orders.work.due_retries import DueRetries
from orders.work.hand_back import hand_back
from orders.work.health import WorkerHealth
from orders.work.runner import Runner
from orders.work.sweep import Sweep
from orders.work.watchdog import watch_the_loop

log = logging.getLogger("orders.worker")

TABLES = (
    orders_table.COLUMNS_ARE_THERE,
    outbox_table.COLUMNS_ARE_THERE,
    retries_table.COLUMNS_ARE_THERE,
    dead_letters_table.COLUMNS_ARE_THERE,
    stragglers_table.COLUMNS_ARE_THERE,
    attempt_log.COLUMNS_ARE_THERE,
)

CLOSING_SECONDS = 2.0  # of WORKER_GRACE: the time, after the handlers had theirs, to hand back orders and to close
HTTP_GRACE_SECONDS = 1.0


def create_health(health: WorkerHealth) -> Litestar:
    """Build the HTTP application of the worker's own port: /health/live, /health/ready, /status and /metrics."""
    health.export()

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

    return Litestar(
        [live, ready, status, metrics], exception_handlers=problems.HANDLERS, openapi_config=None, logging_config=None
    )


def _json(status_code: int, content: dict[str, object]) -> Response[bytes]:
    return Response(msgspec.json.encode(content), status_code=status_code, media_type="application/json")


async def serve(settings: WorkerSettings, handler: Handler) -> None:
    """Start, work until a signal, then finish the orders in hand or hand them back.

    Raises StartupError if the database, its tables or the queues are not there.
    """
    url = settings.database_url
    await postgres.require_database(url, *TABLES)
    await topology.wait_and("verify", settings.amqp_url, process.WAIT_SECONDS)
    stop = asyncio.Event()
    process.on_stop_signals(stop.set)
    policies = PolicyWatch(settings.orders_management_url, settings.amqp_url)
    runner = Runner(handler, url, timeout=settings.work_timeout)
    async with (
        RelayNotifier(url) as notifier,
        WorkerLock(url) as worker_lock,
        CrashIsolation(timeout=settings.work_timeout) as crash_isolation,
        WorkBatches(url, worker_lock, notifier) as batches,
        DueRetries(url, notifier.soon) as retries,
        DeadLetterMover(settings.amqp_url, batches.store, policies.cause) as dead_letters,
    ):
        max_running = None
        if runner.wants_connection:
            max_running = settings.work_connections
        elif runner.is_blocking:
            max_running = settings.work_threads
        in_hand = OrdersInHand(
            batches, runner, crash_isolation, max_failures=settings.work_max_attempts, max_running=max_running
        )

        def take(delivery: Delivery) -> None:
            notifier.needless()
            in_hand.take(delivery)

        consumer = Consumer(settings.amqp_url, WORK_QUEUE, settings.worker_concurrency, take)
        sweep = Sweep(url, worker_lock, in_hand, consumer, notifier.soon)
        health = create_health(
            WorkerHealth(
                in_hand,
                consumer,
                worker_lock,
                batches,
                retries,
                sweep,
                dead_letters,
                policies,
                handler=settings.orders_handler,
            )
        )
        server = HttpServer(health, settings.worker_host, settings.worker_port, HTTP_GRACE_SECONDS)
        consuming = asyncio.create_task(consumer.run(), name="consumer")
        serving = asyncio.create_task(server.serve(), name="health")
        watching = asyncio.create_task(watch_the_loop(settings.work_timeout), name="watchdog")
        looking = asyncio.create_task(policies.run(), name="policies")
        looking.add_done_callback(stop_the_process_if_it_crashed)
        ends = [asyncio.create_task(event.wait(), name="stop") for event in (stop, in_hand.crashed)]
        log.info("worker %s runs %s, health on port %s", os.getpid(), settings.orders_handler, settings.worker_port)

        async with sweep:
            await asyncio.wait([consuming, serving, *ends], return_when=asyncio.FIRST_COMPLETED)

        consumer.stop()
        left = await in_hand.drain(max(0.0, settings.worker_grace - CLOSING_SECONDS), runner.sever)
        handed_back = await hand_back(url, worker_lock.number, left)
        consumer.finish()
        server.stop()
        for task in (*ends, watching, looking):
            task.cancel()
        await asyncio.gather(consuming, serving)
        await runner.close()
        log.info("worker %s has stopped: %s, %s handed back", os.getpid(), in_hand.counters, handed_back)
        in_hand.raise_crash()


def main() -> None:
    """Run the worker; settings come from the environment."""
    settings = WorkerSettings.read_or_exit("orders.worker")
    process.run("orders.worker", lambda: serve(settings, handlers.load(settings.orders_handler)), settings.log_level)


if __name__ == "__main__":
    main()
