"""Bring back the orders that nothing carries: no message, no retry, no worker.

After the promotion of a standby that lacked the newest commits, orders are `placed` or `processing` whose messages are
acked. The sweep walks over the outbox some minutes behind the relay, and lists the orders that have not ended. Each
worker puts off those that it has in hand; the rest is sent again, once, then after pauses that double.
"""

import logging
from collections.abc import Callable
from itertools import groupby
from operator import attrgetter

import msgspec
import psycopg
from prometheus_client import Gauge
from psycopg import AsyncConnection

from orders.broker.consumer import Consumer
from orders.broker.topology import WORK_QUEUE
from orders.database import attempt_log, orders_table, outbox_table, postgres, stragglers_table
from orders.database.errors import ErrorClass, classify
from orders.database.resend_messages import LostMessage, resend_messages
from orders.database.session import Session
from orders.database.stragglers_table import Stranded
from orders.database.worker_lock import WorkerLock
from orders.model.error_text import first_line
from orders.work.dead_letter_mover import BROUGHT_BACK
from orders.work.delivery import OrdersInHand

log = logging.getLogger(__name__)

CALL_SECONDS = 5.0
SLICE_ROWS = 5000  # of the outbox, for one statement
SLICES = 40  # for one round: a sweep that is behind catches up, at some thousand rows a second
PAUSE_SECONDS = 0.1  # between two slices
QUIET_SECONDS = 10.0  # nothing is brought back while an older event is unsent: it may be the order's own
RESEND_ROWS = 200  # for one round
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60.0, 3600.0  # until an order is brought back once more
LATELY_SECONDS = 600.0  # after a change of the server's history the sweep makes haste

TIMELINE = Gauge("orders_worker_timeline", "Timeline of the PostgreSQL server, as last seen; 0: it does not tell")
REASONS = {"placed": "undelivered", "processing": "unworked"}  # as `orders reconcile` calls them


class Pace(msgspec.Struct, frozen=True):
    """Seconds between two rounds; the age of a row that the sweep looks at; what each worker has to put orders off."""

    every_seconds: float
    age_seconds: float
    wait_seconds: float


STEADY = Pace(every_seconds=30.0, age_seconds=300.0, wait_seconds=75.0)
# Some seconds, so that each worker has its connection again before anything is judged.
HASTY = Pace(every_seconds=2.0, age_seconds=5.0, wait_seconds=15.0)


class Sweep(Session):
    """Owns the connection and the clock; `brought_back` counts the orders since the start."""

    def __init__(
        self,
        url: str,
        worker_lock: WorkerLock,
        in_hand: OrdersInHand,
        consumer: Consumer,
        notify: Callable[[int], None],
        *,
        steady: Pace = STEADY,
        hasty: Pace = HASTY,
    ) -> None:
        """`notify` is called with the number of rows after each commit that added rows to the outbox."""
        super().__init__("sweep", url, self._sweep, **orders_table.BY_INDEX)
        self.worker_lock = worker_lock
        self.in_hand = in_hand
        self.consumer = consumer
        self.notify = notify
        self.steady = steady
        self.hasty = hasty
        self.brought_back = 0
        self._oldest = outbox_table.OldestEvent()

    async def _sweep(self, conn: AsyncConnection) -> None:
        await self._note_history(conn)
        while not self.stopping.is_set():
            with postgres.deadline(conn, CALL_SECONDS):
                place = await stragglers_table.look(conn, LATELY_SECONDS)
            pace = self.hasty if place.changed_lately else self.steady
            if place.mark > place.walked and self._has_room():
                await self._walk(conn, place, pace)
            if place.has_stragglers:
                await self._bring_back(conn, pace)
            await self.pause(pace.every_seconds)

    async def _note_history(self, conn: AsyncConnection) -> None:
        """Notice a promotion or a restored backup. Either ends all sessions, so one look for each session is enough."""
        try:
            with postgres.deadline(conn, CALL_SECONDS):
                history = await stragglers_table.history(conn)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:  # a managed server may keep it to itself
            log.warning("the server does not tell its timeline: %s", first_line(error))
            return
        TIMELINE.set(history.timeline)
        with postgres.deadline(conn, CALL_SECONDS):
            if await stragglers_table.note_history(conn, history):
                log.warning("PostgreSQL writes timeline %s of system %s now", history.timeline, history.system_id)

    def _has_room(self) -> bool:
        """Whether the broker would give this worker another message, so that none waits in the queue."""
        return self.consumer.connected and self.in_hand.in_hand < self.consumer.prefetch

    async def _walk(self, conn: AsyncConnection, place: stragglers_table.Place, pace: Pace) -> None:
        for _ in range(SLICES):
            with postgres.deadline(conn, CALL_SECONDS):
                walked = await stragglers_table.walk(
                    conn, WORK_QUEUE, place, SLICE_ROWS, age_seconds=pace.age_seconds, wait_seconds=pace.wait_seconds
                )
            if walked is None or walked == place.mark or self.stopping.is_set():
                return
            place = place._replace(walked=walked)
            await self.pause(PAUSE_SECONDS)

    async def _bring_back(self, conn: AsyncConnection, pace: Pace) -> None:
        with postgres.deadline(conn, CALL_SECONDS):
            lost = await stragglers_table.keep_in_hand(
                conn,
                self.worker_lock.number,
                self.in_hand.order_ids,
                wait_seconds=pace.wait_seconds,
                age_seconds=pace.age_seconds,
            )
            unsent_seconds = await self._oldest.seconds(conn)
        if lost:
            log.warning("the ends of %s orders that this worker had worked are lost", lost)
        if await self.consumer.count_ready() != 0 or unsent_seconds > QUIET_SECONDS:
            return
        try:
            with postgres.deadline(conn, CALL_SECONDS):
                await self._send_stranded(conn, pace)
        except psycopg.Error as error:
            if classify(error) is not ErrorClass.PARTITION_MISSING:
                raise
            with postgres.deadline(conn, CALL_SECONDS):
                await outbox_table.add_partitions(conn)

    async def _send_stranded(self, conn: AsyncConnection, pace: Pace) -> None:
        sent: dict[str, int] = {}
        async with conn.transaction():
            stranded = await stragglers_table.judge(
                conn,
                RESEND_ROWS,
                wait_seconds=pace.wait_seconds,
                pause_seconds=FIRST_PAUSE_SECONDS,
                longest_seconds=LONGEST_PAUSE_SECONDS,
            )
            for status, orders in groupby(sorted(stranded, key=attrgetter("status")), key=attrgetter("status")):
                sent[REASONS[status]] = await self._resend(conn, list(orders), REASONS[status])
        if unsent := len(stranded) - sum(sent.values()):
            log.warning(
                "%s orders that nothing carries cannot be sent again now: another session has locked them, "
                "or their outbox rows are gone; `orders reconcile` names them",
                unsent,
            )  # fmt: skip
        for reason, many in sent.items():
            if not many:
                continue
            log.warning("%s orders are brought back, since nothing carried them: %s", many, reason)
            BROUGHT_BACK.labels(reason).inc(many)
            self.brought_back += many
            self.notify(many)

    async def _resend(self, conn: AsyncConnection, stranded: list[Stranded], reason: str) -> int:
        lost = [LostMessage(each.order_id, each.version, each.row_id) for each in stranded]
        return await resend_messages(conn, WORK_QUEUE, lost, attempt_log.own_name(), f"nothing carried it: {reason}")
