"""`orders reconcile`: hold what the tables and the broker say about each order against each other.

Two passes copy orders and outbox rows of a range of time to a file of our own, a page at a time; whatever looks wrong
there is looked at again until it is certain: what was merely under way has moved on meanwhile, and what is merely
young has grown old. So it may run beside a live system, whose tables it never joins and never locks.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TypeVar
from uuid import UUID

import click
import msgspec
import psycopg
import uvloop
from aiormq.exceptions import AMQPError, ChannelClosed
from psycopg import AsyncConnection
from rich.console import Console
from rich.table import Table

from orders.broker import rabbitmq
from orders.broker.rabbitmq import BrokerUnavailable
from orders.broker.topology import WORK_QUEUE
from orders.database import postgres
from orders.model.errors import OrdersError, Unavailable
from orders.model.ids import lowest_id
from orders.runtime.retry_pauses import backoff
from orders.runtime.settings import ReconcileSettings
from orders.tools.actor import actor
from orders.tools.reconcile import queries, rules
from orders.tools.reconcile.rules import Cause, Fault, FaultKind, OutboxCoverage
from orders.tools.reconcile.scratch import ScratchDatabase

T = TypeVar("T")

PAGE = 5000  # orders, or outbox ids, of one statement
STATEMENT_SECONDS = 8.0
PATIENCE_SECONDS = 60.0  # with a database that does not answer
# An outbox row may be committed so long after its id was drawn: the second look begins so much earlier than the first.
COMMIT_SECONDS = 60.0
ROUND_SECONDS = 1.0
REPAIR_ROWS = 200
# Said after connecting: a session that begins read-only is not let in where writes are options for.
READ_ONLY = "SET default_transaction_read_only = on"

# What a message to the work queue mends.
MENDABLE: frozenset[Cause] = frozenset({"undelivered", "skipped", "unworked"})
# What may still be waiting in the work queue, as far as the tables can tell.
PERHAPS_WAITING: frozenset[Cause] = frozenset({"undelivered", "unworked"})


class QueueMissing(OrdersError):
    """The queue orders.work is not there: run `orders topology`."""


class Span(msgspec.Struct, frozen=True):
    """The orders in question: those whose ids lie between these, and so were placed between these times."""

    since: datetime | None
    until: datetime | None

    @property
    def first(self) -> UUID:
        return lowest_id(self.since) if self.since else UUID(int=0)

    @property
    def below(self) -> UUID:
        return lowest_id(self.until) if self.until else UUID(int=2**128 - 1)


class ReconcileReport(msgspec.Struct, kw_only=True):
    """What was found. `findings` holds the first of them, `counts` says how many there are."""

    ok: bool = True
    since: datetime | None
    until: datetime | None
    orders: int = 0
    rows: int = 0
    counts: dict[FaultKind, int] = msgspec.field(
        default_factory=lambda: dict.fromkeys(("lost", "stuck", "doubled", "out_of_order"), 0)
    )
    waiting: int = 0  # orders whose message is still in the queue, as far as can be told
    queue_ready: int | None = None  # messages in the work queue, where the broker was options
    repaired: int = 0
    seconds: float = 0.0
    findings: list[Fault] = msgspec.field(default_factory=list)


class ReconcileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command was options for."""

    span: Span
    grace: float
    limit: int
    with_broker: bool
    repair: bool


class Reconciliation:
    """One run of it. `progress` is told what is being done."""

    def __init__(self, settings: ReconcileSettings, options: ReconcileOptions, progress: Callable[[str], None]) -> None:
        self.settings = settings
        self.options = options
        self.progress = progress
        self.report = ReconcileReport(since=options.span.since, until=options.span.until)
        self._conn: AsyncConnection | None = None
        self._began = 0.0  # by the server's clock
        self._coverage = OutboxCoverage(0.0)

    async def run(self) -> ReconcileReport:
        """Look, look again, repair if options to, and return what was found."""
        started = time.monotonic()
        try:
            with ScratchDatabase() as scratch:
                self._began = await self._ask(queries.clock)
                self._coverage = OutboxCoverage(await self._ask(queries.coverage_start))
                await self._copy_orders(scratch)
                await self._copy_rows(
                    scratch, None if self.options.span.since is None else self.options.span.since.timestamp()
                )
                self.progress("comparing")
                scratch.suspect(order_id for order_id, _ in self._faulty(scratch, of_suspects=False))
                await self._look_again(scratch)
                waits = self.options.with_broker and await self._may_wait_in_the_queue(scratch)
                self._count(scratch, waits)
                if self.options.repair:
                    await self._repair(scratch)
        finally:
            await postgres.close(self._conn)
        self.report.seconds = round(time.monotonic() - started, 3)
        return self.report

    async def _copy_orders(self, scratch: ScratchDatabase) -> None:
        above, below = UUID(int=max(0, self.options.span.first.int - 1)), self.options.span.below
        while page := await self._ask(partial(queries.orders, above=above, below=below, limit=PAGE)):
            scratch.add_orders(page)
            above = page[-1].order_id
            self.report.orders += len(page)
            self.progress(f"{self.report.orders} orders read")

    async def _copy_rows(self, scratch: ScratchDatabase, since: float | None) -> None:
        above, last = await self._ask(partial(queries.first_and_last_id, since=since and since - 60))
        first_key, below_key = str(self.options.span.first), str(self.options.span.below)
        first = above
        while above < last:
            upto = min(above + PAGE, last)
            page = await self._ask(
                partial(queries.rows, above=above, upto=upto, first_key=first_key, below_key=below_key)
            )
            scratch.add_rows((key, row) for key, row in page if _is_an_order(key))
            above = upto
            self.report.rows += len(page)
            self.progress(f"outbox rows read to {above - first} of {last - first}")

    def _faulty(self, scratch: ScratchDatabase, *, of_suspects: bool) -> Iterator[tuple[UUID, list[Fault]]]:
        for order_id, order, rows in scratch.histories(of_suspects=of_suspects):
            if found := rules.find_faults(order_id, order, rows, self._coverage):
                yield order_id, found

    async def _look_again(self, scratch: ScratchDatabase) -> None:
        """Ask about each suspect until it is well, or wrong for good; those that are wrong stay suspects.

        The orders are read before the rows: what an order's row tells was committed with its event, and so is in a
        look at the outbox that begins afterwards.
        """
        read = self.report.rows
        while True:
            for keys in scratch.suspects():
                scratch.renew_orders(keys, await self._ask(partial(queries.these_orders, order_ids=keys)))
            await self._copy_rows(scratch, self._began - COMMIT_SECONDS)
            for ids in scratch.rows_of_suspects():
                scratch.add_rows(await self._ask(partial(queries.these_rows, ids=ids)))
            self.report.rows = read
            now = await self._ask(queries.clock)
            self._coverage = OutboxCoverage(self._coverage.since, await self._ask(queries.requeues))

            late, young = now - self.options.grace, 0

            def still_wrong(late: float = late) -> Iterator[UUID]:
                nonlocal young
                for order_id, found in self._faulty(scratch, of_suspects=True):
                    young += any(fault.since is not None and fault.since > late for fault in found)
                    yield order_id

            scratch.suspect(still_wrong())
            if not young:
                return
            self.progress(f"{young} orders are under way: waiting until they are through, or late")
            await asyncio.sleep(ROUND_SECONDS)

    async def _may_wait_in_the_queue(self, scratch: ScratchDatabase) -> bool:
        """Say whether the queue has messages enough for all the orders that lack one."""
        self.report.queue_ready = await queue_depth(self.settings.amqp_url)
        lacking = sum(
            fault.cause in PERHAPS_WAITING for _, found in self._faulty(scratch, of_suspects=True) for fault in found
        )
        return 0 < lacking <= self.report.queue_ready

    def _count(self, scratch: ScratchDatabase, waits: bool) -> None:
        for _, found in self._faulty(scratch, of_suspects=True):
            for fault in found:
                if waits and fault.cause in PERHAPS_WAITING:
                    self.report.waiting += 1
                    continue
                self.report.ok = False
                self.report.counts[fault.kind] += 1
                if len(self.report.findings) < self.options.limit:
                    self.report.findings.append(fault)

    async def _repair(self, scratch: ScratchDatabase) -> None:
        """Send again what only lacks a message. One that still waits is sent twice, which harms nobody."""
        mendable = (
            fault
            for _, found in self._faulty(scratch, of_suspects=True)
            for fault in found
            if {other.cause for other in found} <= MENDABLE
        )
        conn = await postgres.connect(self.settings.database_url, "orders-reconcile-repair")
        try:
            while chunk := list(islice(mendable, REPAIR_ROWS)):
                with postgres.deadline(conn, STATEMENT_SECONDS):
                    self.report.repaired += await queries.send_again(conn, WORK_QUEUE, chunk, actor())
                self.progress(f"{self.report.repaired} messages sent again")
            with postgres.deadline(conn, STATEMENT_SECONDS):
                await conn.execute("NOTIFY outbox")
        finally:
            await postgres.close(conn)

    async def _ask(self, question: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Ask the database, over as many connections as it takes; raise Unavailable when it takes too long."""
        end = time.monotonic() + PATIENCE_SECONDS
        for pause in backoff():
            try:
                if self._conn is None:
                    self._conn = await postgres.connect(self.settings.database_url, "orders-reconcile")
                    with postgres.deadline(self._conn, STATEMENT_SECONDS):
                        await self._conn.execute(READ_ONLY)
                with postgres.deadline(self._conn, STATEMENT_SECONDS):
                    return await question(self._conn)
            except psycopg.OperationalError as error:
                await postgres.close(self._conn)
                self._conn = None
                if time.monotonic() > end:
                    raise Unavailable(f"the database does not answer: {str(error).splitlines()[0]}") from None
                await asyncio.sleep(pause)
        raise Unavailable


async def queue_depth(amqp_url: str) -> int:
    """Return how many messages wait in the work queue; raise QueueMissing if it is not there."""
    async with rabbitmq.connect(amqp_url, "orders-reconcile") as connection, asyncio.timeout(10):
        channel = await connection.channel()
        try:
            declared = await channel.queue_declare(WORK_QUEUE, passive=True)
        except ChannelClosed:
            raise QueueMissing from None
        return declared.message_count or 0


def _is_an_order(key: str) -> bool:
    try:
        return str(UUID(key)) == key
    except ValueError:
        return False


def table_of(report: ReconcileReport) -> Table:
    """Lay a report out for people."""
    table = Table(title=f"{report.orders} orders, {report.rows} outbox rows", title_justify="left")
    for name in ("what", "order", "why"):
        table.add_column(name, overflow="fold")
    for fault in report.findings:
        table.add_row(f"{fault.kind}: {fault.cause}", str(fault.order_id), fault.reason)
    return table


@contextlib.asynccontextmanager
async def progress_lines(console: Console) -> AsyncIterator[Callable[[str], None]]:
    """A line that changes on a terminal, and one every few seconds elsewhere."""
    if console.is_terminal:
        with console.status("") as status:
            yield lambda text: status.update(text)
    else:
        last = time.monotonic()

        def line(text: str) -> None:
            nonlocal last
            if time.monotonic() - last > 5:
                last = time.monotonic()
                console.print(text, highlight=False, markup=False)

        yield line


async def _run(settings: ReconcileSettings, options: ReconcileOptions) -> ReconcileReport:
    async with progress_lines(Console(stderr=True)) as progress:
        return await Reconciliation(settings, options, progress).run()


class Moment(click.ParamType[datetime]):
    """RFC 3339, or a time ago: 90s, 15m, 2h, 1d."""

    name = "time"
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        text = str(value)
        if text[:-1].isdigit() and text[-1] in self.units:
            return datetime.now(UTC) - timedelta(**{self.units[text[-1]]: int(text[:-1])})
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(
                f"{text!r} is no time: give 2026-11-23T18:00:00Z, or 15m for a quarter of an hour ago", param, ctx
            )
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@click.command()
@click.option("--since", type=Moment(), help="Orders placed from here on: 2026-11-23T18:00:00Z, or 15m, 2h, 1d ago.")
@click.option("--until", type=Moment(), help="Orders placed before then; else all there are.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    help="Seconds that an order may be under way before it counts as late.",
)
@click.option("--broker", "with_broker", is_flag=True, help="Ask RabbitMQ too what still waits there (AMQP_URL).")
@click.option("--repair", is_flag=True, help="Send again, in order, what the broker lost (implies --broker).")
@click.option("--limit", type=click.IntRange(min=0), default=1000, show_default=True, help="Findings to name at most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reconcile(
    since: datetime | None,
    until: datetime | None,
    grace: float,
    with_broker: bool,
    repair: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Report every order that is lost, stuck, doubled or out of order.

    Compares orders and outbox (DATABASE_URL), and the broker where options. Reads only, in short statements that a live
    system does not notice; exits 0 only if nothing is wrong, 1 if something is, 3 if it could not find out.
    """
    settings = ReconcileSettings.read_or_exit("orders reconcile")
    with_broker = with_broker or repair
    if with_broker and not settings.amqp_url:
        click.echo("orders reconcile: AMQP_URL is not set: it says where to find RabbitMQ", err=True)
        sys.exit(2)
    options = ReconcileOptions(
        span=Span(since, until), grace=grace, limit=limit, with_broker=with_broker, repair=repair
    )
    try:
        report = uvloop.run(_run(settings, options))
    except (OrdersError, BrokerUnavailable, AMQPError, OSError, TimeoutError, psycopg.Error) as error:
        click.echo(f"orders reconcile: {str(error) or type(error).__name__}", err=True)
        sys.exit(3)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        show(report)
    sys.exit(0 if report.ok else 1)


def show(report: ReconcileReport) -> None:
    """Print a report for people."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    if report.findings:
        console.print(table_of(report))
    counts = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in report.counts.items())
    waiting = f", {report.waiting} wait in the queue" if report.waiting else ""
    repaired = f"; {report.repaired} messages sent again" if report.repaired else ""
    console.print(
        f"{report.orders} orders and {report.rows} outbox rows in {report.seconds:.1f} s: {counts}{waiting}{repaired}",
        highlight=False,
    )
