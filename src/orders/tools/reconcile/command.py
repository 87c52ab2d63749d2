"""`orders reconcile`: its options, its progress, and its report on the screen."""

import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime

import click
import msgspec
import psycopg
import uvloop
from aiormq.exceptions import AMQPError
from rich.console import Console
from rich.table import Table

from orders.broker.rabbitmq import BrokerUnavailable
from orders.model.errors import OrdersError
from orders.runtime.settings import ReconcileSettings
from orders.tools.command_line import Parsed, fail
from orders.tools.reconcile.run import ReconcileOptions, ReconcileReport, Reconciliation, Span
from orders.tools.run_env import environment_for
from orders.tools.time_ago import parse_moment

RETRIES_SHOWN = 10


def table_of(report: ReconcileReport) -> Table:
    """Lay out the faults of a report."""
    table = Table(title=f"{report.orders} orders, {report.rows} outbox rows", title_justify="left")
    for name in ("what", "order", "why"):
        table.add_column(name, overflow="fold")
    for fault in report.findings:
        table.add_row(f"{fault.kind}: {fault.cause}", str(fault.order_id), fault.reason)
    return table


def lines_of_retries(report: ReconcileReport) -> Iterator[str]:
    """Yield a line for each of the first orders that wait for a retry: since its last failure, until it is due."""
    for wait in report.retries[:RETRIES_SHOWN]:
        since, until = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}" for at in (wait.since, wait.until))
        yield f"waiting for a retry: {wait.order_id}, since {since}, until {until}"
    if more := report.waiting_for_retry - min(len(report.retries), RETRIES_SHOWN):
        yield f"waiting for a retry: {more} more orders"


@contextlib.asynccontextmanager
async def progress_lines(console: Console) -> AsyncIterator[Callable[[str], None]]:
    """Yield a function that shows a line: in place on a terminal, at most every five seconds elsewhere."""
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


MOMENT = Parsed("time", parse_moment)


@click.command()
@click.option("--since", type=MOMENT, help="Only orders placed since then: 2026-11-23T18:00:00Z, or 15m, 2h, 1d ago.")
@click.option("--until", type=MOMENT, help="Only orders placed before then.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    help="Seconds after which an order under way counts as late.",
)
@click.option("--broker", "with_broker", is_flag=True, help="Also count what waits in the work queue (AMQP_URL).")
@click.option("--repair", is_flag=True, help="Send lost messages again, in order (implies --broker).")
@click.option(
    "--limit", type=click.IntRange(min=0), default=1000, show_default=True, help="Maximum number of faults listed."
)
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
    """Report orders that are lost, stuck, doubled or misordered.

    Compares the orders with the outbox (DATABASE_URL), and on request with the work queue. If neither DATABASE_URL nor
    AMQP_URL is set, reads .run/env of `make up`. Short statements read the tables, so the command may run beside a live
    system. Only --repair writes.

    Exit code 0: no fault. 1: faults. 2: wrong usage. 3: the database or the broker did not answer.
    """
    settings = ReconcileSettings.read_or_exit("orders reconcile", environment_for(ReconcileSettings))
    with_broker = with_broker or repair
    if with_broker and not settings.amqp_url:
        fail("orders reconcile", "AMQP_URL is not set: --broker and --repair need it", 2)
    options = ReconcileOptions(
        span=Span(since, until), grace=grace, limit=limit, with_broker=with_broker, repair=repair
    )
    try:
        report = uvloop.run(_run(settings, options))
    except (OrdersError, BrokerUnavailable, AMQPError, OSError, TimeoutError, psycopg.Error) as error:
        fail("orders reconcile", str(error) or type(error).__name__, 3)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        show(report)
    sys.exit(0 if report.ok else 1)


def show(report: ReconcileReport) -> None:
    """Print a report as text."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    if report.findings:
        console.print(table_of(report))
    for line in lines_of_retries(report):
        console.print(line, highlight=False, markup=False)
    counts = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in report.counts.items())
    waiting = f", {report.waiting} wait in the queue" if report.waiting else ""
    waiting += f", {report.waiting_for_retry} wait for a retry" if report.waiting_for_retry else ""
    repaired = f"; {report.repaired} messages sent again" if report.repaired else ""
    console.print(
        f"{report.orders} orders and {report.rows} outbox rows in {report.seconds:.1f} s: {counts}{waiting}{repaired}",
        highlight=False,
    )
