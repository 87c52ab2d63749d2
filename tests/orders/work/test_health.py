"""When a worker is ready."""

import pytest

from orders.broker.consumer import Consumer
from orders.broker.policy_watch import PolicyWatch
from orders.database.batcher import Batcher
from orders.database.notify import RelayNotifier
from orders.database.worker_lock import WorkerLock
from orders.work.batches import WorkBatches
from orders.work.dead_letter_mover import DeadLetterMover
from orders.work.delivery import OrdersInHand
from orders.work.due_retries import DueRetries
from orders.work.health import WorkerHealth
from orders.work.runner import Job, RunOutcome, Succeeded
from orders.work.sweep import Sweep

URL = "postgresql://nobody@127.0.0.1:1/nowhere"
AMQP_URL = "amqp://127.0.0.1:1"


async def succeed(_job: Job) -> RunOutcome:
    return Succeeded()


@pytest.mark.parametrize("missing", ["nothing", "broker", "lock", "a connection"])
async def test_ready(missing: str) -> None:
    """
    A worker is ready while it consumes, holds its lock, and each of its batchers has a connection.
    """
    lock = WorkerLock(URL)
    batches = WorkBatches(URL, lock, RelayNotifier(URL))
    consumer = Consumer(AMQP_URL, "work", 1, lambda _delivery: None)
    in_hand = OrdersInHand(batches, succeed, succeed, max_failures=1)
    policies = PolicyWatch("", AMQP_URL)
    health = WorkerHealth(
        in_hand,
        consumer,
        lock,
        batches,
        DueRetries(URL, lambda: None),
        Sweep(URL, lock, in_hand, consumer, lambda _rows: None),
        DeadLetterMover(AMQP_URL, batches.store, policies.cause),
        policies,
        handler="shop.work:handle",
    )
    consumer.connected = missing != "broker"
    if missing != "lock":
        lock.held.set()
    batchers: list[Batcher] = [batches.claim, batches.finish, batches.postpone, batches.store]  # type: ignore[type-arg]
    for batcher in batchers:
        batcher.connections = 1
    if missing == "a connection":
        batches.postpone.connections = 0

    assert health.is_ready() == (missing == "nothing")
    status = health.status()
    assert status["broker"] == ("disconnected" if missing == "broker" else "connected")
    assert status["handler"] == "shop.work:handle"
    assert status["database"] == ("disconnected" if missing in {"lock", "a connection"} else "connected")
