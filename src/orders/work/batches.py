"""The worker's statements, each batched over the orders in hand, with what belongs before and after them."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from psycopg import AsyncConnection

from orders.database import claim_orders, dead_letters_table, outbox_table
from orders.database.batcher import Batcher, Limits
from orders.database.claim_orders import Claim
from orders.database.dead_letters_table import BroughtBack, DeadLetter, PoisonMark
from orders.database.finish_orders import Finish, Finished, finish_orders
from orders.database.notify import RelayNotifier
from orders.database.postpone_orders import Postpone, postpone_orders
from orders.database.row_locks import LOCK_TIMEOUT, Busy, SkipLocked
from orders.database.worker_lock import WorkerLock
from orders.model.work_message import WorkMessage

# The prefetch is the only bound of the queue: an order that is in hand always gets its turn.
LIMITS = Limits(batch_rows=256, queue_rows=1_000_000)
# A busy order is claimed again by its own task, which meanwhile leaves its place among the handlers that run.
CLAIM_LIMITS = Limits(batch_rows=256, queue_rows=1_000_000, retry_busy=False)


class WorkBatches:
    """Owns the batchers. Each call takes one item, and returns once the transaction of its batch is committed."""

    def __init__(self, url: str, worker_lock: WorkerLock, notifier: RelayNotifier) -> None:
        self._worker_lock = worker_lock
        add_partitions = outbox_table.add_partitions
        self._claim_skipping = SkipLocked(self._claim_orders)
        # The event of an end is for subscribers: no order waits for it.
        finish = notifier.after(SkipLocked(_finish_orders), notifier.later)
        store = notifier.after(dead_letters_table.store)
        # The names are those of metrics and of connections, on which dashboards depend.
        self.claim = Batcher[WorkMessage, Claim]("claim", url, self._claim, CLAIM_LIMITS, session=LOCK_TIMEOUT)
        self.finish = Batcher[Finish, Finished | None](
            "finish", url, finish, LIMITS, mend=add_partitions, session=LOCK_TIMEOUT
        )
        self.postpone = Batcher[Postpone, None]("postpone", url, postpone_orders, LIMITS)
        self.store = Batcher[DeadLetter | PoisonMark, BroughtBack | None](
            "bury", url, store, LIMITS, mend=add_partitions
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "WorkBatches":
        for batcher in self._all():
            await self._stack.enter_async_context(batcher)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def are_connected(self) -> bool:
        """Whether each batcher has a connection."""
        return all(batcher.connections for batcher in self._all())

    def locked(self) -> int:
        """Return how many orders in hand wait, since another session has locked their rows."""
        return sum(len(batcher.locked) for batcher in self._all())

    def _all(self) -> tuple[Batcher[Any, Any], ...]:
        return self.claim, self.finish, self.postpone, self.store

    async def _claim(self, conn: AsyncConnection, batch: Sequence[WorkMessage]) -> Sequence[Claim]:
        await self._worker_lock.require()  # without the lock the claim would look like that of a dead worker
        return await self._claim_skipping(conn, batch)

    async def _claim_orders(
        self, conn: AsyncConnection, batch: Sequence[WorkMessage], skip_locked: bool
    ) -> Sequence[Claim]:
        return await claim_orders.claim_orders(conn, self._worker_lock.number, batch, skip_locked=skip_locked)


async def _finish_orders(
    conn: AsyncConnection, batch: Sequence[Finish], skip_locked: bool
) -> Sequence[Finished | Busy | None]:
    return await finish_orders(conn, batch, skip_locked=skip_locked)
