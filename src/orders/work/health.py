"""The health of the worker: whether it is ready, and its numbers for /status."""

import msgspec
from prometheus_client import Gauge

from orders.broker.consumer import Consumer
from orders.broker.policy_watch import PolicyWatch
from orders.database.worker_lock import WorkerLock
from orders.work.batches import WorkBatches
from orders.work.dead_letter_mover import DeadLetterMover
from orders.work.delivery import OrdersInHand
from orders.work.due_retries import DueRetries
from orders.work.sweep import Sweep

BROKER = Gauge("orders_worker_broker_connected", "1 while the work queue is consumed")
DATABASE = Gauge("orders_worker_database_connected", "1 while every statement has its connection")


class WorkerHealth(msgspec.Struct, frozen=True):
    """The parts of the worker whose state makes up its health."""

    orders: OrdersInHand
    consumer: Consumer
    worker_lock: WorkerLock
    batches: WorkBatches
    retries: DueRetries
    sweep: Sweep
    dead_letters: DeadLetterMover
    policies: PolicyWatch
    handler: str  # module:function, as ORDERS_HANDLER names it

    def status(self) -> dict[str, object]:
        """Return the fields of /status, as docs/worker.md lists them."""
        return {
            "handler": self.handler,
            "in_hand": self.orders.in_hand,
            "waiting_for_retry": self.retries.waiting,  # of all workers
            "locked": self.batches.locked() + len(self.retries.locked),
            **msgspec.structs.asdict(self.orders.counters),
            "buried": self.dead_letters.stored,
            "brought_back": self.dead_letters.brought_back + self.sweep.brought_back,
            "policy_faults": [msgspec.structs.asdict(fault) for fault in self.policies.faults],
            "broker": "connected" if self.consumer.connected else "disconnected",
            "database": "connected" if self.is_database_connected() else "disconnected",
        }

    def is_database_connected(self) -> bool:
        """Whether every statement has its connection, and the worker lock is held."""
        return self.worker_lock.held.is_set() and self.batches.are_connected()

    def is_ready(self) -> bool:
        """Whether broker and database are connected."""
        return self.consumer.connected and self.is_database_connected()

    def export(self) -> None:
        """Have /metrics read the two connections from here on."""
        BROKER.set_function(lambda: self.consumer.connected)
        DATABASE.set_function(self.is_database_connected)
