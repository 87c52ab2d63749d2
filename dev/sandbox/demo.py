"""`make demo`: real orders through the whole system, from nginx to done, and a summary of what was measured.

`python -m dev.sandbox.demo FILE` takes other invoices than the bundled ones.
Exit code 0 only if every order was placed, its event confirmed by the broker, and its work done.
At a terminal the system serves on until Ctrl-C.
"""

import asyncio
import os
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, LiteralString

import msgspec
import psycopg
import uvloop
from rich.console import Console
from rich.table import Table

from dev.sandbox.choice import ChoiceError, choose
from dev.sandbox.packages import MissingProgramError
from dev.sandbox.process import ROOT, StartError, write_atomically
from dev.sandbox.servers import servers
from dev.sandbox.system import Counts, System
from orders.tools.replay.client import Leg, NotDone, RefusalCount, Replay, ReplayLimits, ReplayReport
from orders.tools.replay.command import run_shown
from orders.tools.replay.invoices import MalformedFile, RefusalReason, survey

BUNDLED = Path("examples/online-retail-2010-12.csv.gz")
RUN = Path(os.environ.get("SANDBOX_RUN", ".run"))
SUMMARY = RUN / "demo.json"
LOGS = RUN / "demo"  # apart from those of `make up`, which may be running

# The tutorial's work takes up to 10 s; what is shown here is the way to it.
WORK = {"WORK_MIN_SECONDS": "0.005", "WORK_MAX_SECONDS": "0.05"}
SETTLE_SECONDS = 15.0  # for the relay's last marks: an order may be done before its row is marked sent

LAST_ROW: LiteralString = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_id_seq"

# All times are the database's, but for created_at of the order, which is the api's.
MEASURE: LiteralString = """
    WITH mine AS (
        SELECT order_id FROM idempotency_keys
        WHERE client = '' AND operation = 'place' AND starts_with(key, %(key_prefix)s)
    ), published AS (
        SELECT extract(epoch FROM settled_at - created_at)::float8 AS seconds
        FROM outbox JOIN mine ON key = order_id::text
        WHERE id > %(last_row)s AND routing_key = 'order.placed' AND state = 'sent'
    ), done AS (
        SELECT extract(epoch FROM finished_at - created_at)::float8 AS seconds
        FROM orders JOIN mine USING (order_id)
        WHERE status = 'done'
    )
    SELECT (SELECT count(*) FROM mine),
           (SELECT count(*) FROM published),
           (SELECT percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY seconds) FROM published),
           (SELECT count(*) FROM done),
           (SELECT percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY seconds) FROM done)
"""


class Measured(msgspec.Struct, frozen=True):
    """What the database says about the orders of this run."""

    placed: int
    published: int
    publishing: Leg
    done: int
    working: Leg


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What goes to `.run/demo.json`."""

    servers: str
    base_url: str
    file: str
    invoices: int
    accepted: int
    placed: int
    published: int  # their order.placed is in the broker's hands, by its confirm
    done: int
    refused: int
    refused_by: dict[str, RefusalCount]
    not_done: list[NotDone]
    retries: int
    gave_up: str | None
    start_seconds: float
    replay_seconds: float
    orders_per_second: float
    legs: dict[str, Leg]
    complete: bool


def run(console: Console, file: Path) -> int:
    """Start everything, replay, report, end everything; return the exit code."""
    found = survey(file)
    choice = choose(os.environ)
    console.print(str(choice), highlight=False, soft_wrap=True)
    began = time.monotonic()
    with servers(choice, logs=LOGS.resolve()) as its:
        console.print(f"PostgreSQL and RabbitMQ are ready after {time.monotonic() - began:.1f} s", highlight=False)
        counts = Counts.read(os.environ)
        system = System(
            its.database_url,
            its.amqp_url,
            LOGS.resolve(),
            counts,
            settings=WORK,
            management_url=its.own_management_url,
            users_url=its.management_url,
        )
        with system:
            started = time.monotonic() - began
            console.print(
                f"migrated; nginx, {counts.apis} api, {counts.relays} relay, {counts.workers} worker are ready "
                f"after {started:.1f} s\n{file}: {found.lines:,} lines, {found.invoices:,} invoices, "
                f"{found.accepted:,} to place through {system.base_url}",
                highlight=False,
                soft_wrap=True,
            )
            # A name of its own: on servers that stay, another demo places its own orders.
            replay = Replay(file, found, system.base_url, ReplayLimits(), run=f"demo-{secrets.token_hex(4)}")
            with psycopg.connect(its.database_url, autocommit=True) as conn:
                last_row = _one(conn, LAST_ROW)[0]
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(run_shown(replay, console))
                report = replay.report()
                measured = settled(conn, replay.key_prefix, last_row, report.placed)
            summary = sum_up(its.kind, started, report, measured)
            write_atomically(SUMMARY, msgspec.json.format(msgspec.json.encode(summary)).decode() + "\n")
            console.print(table_of(summary))
            if sys.stdin is not None and sys.stdin.isatty():
                serve_on(console, system.base_url)
    console.print("everything has ended" if summary.complete else f"something is missing; the logs are in {LOGS}")
    return 0 if summary.complete else 1


def settled(conn: psycopg.Connection, key_prefix: str, last_row: int, placed: int) -> Measured:
    """Measure once every row of this run is marked, or cannot be expected to be any more."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        row = _one(conn, MEASURE, {"key_prefix": key_prefix, "last_row": last_row})
        orders, published, publishing, done, working = row
        if published >= placed or time.monotonic() > deadline:
            return Measured(orders, published, _leg(published, publishing), done, _leg(done, working))
        time.sleep(0.1)


def sum_up(kind: str, start_seconds: float, report: ReplayReport, measured: Measured) -> Summary:
    """Put together what the client saw and what the database says: an order counts if both agree."""
    placed = min(report.placed, measured.placed)
    done = min(report.done, measured.done)
    return Summary(
        servers=kind,
        base_url=report.to,
        file=report.file,
        invoices=report.invoices,
        accepted=report.accepted,
        placed=placed,
        published=measured.published,
        done=done,
        refused=report.refused,
        refused_by=report.refused_by,
        not_done=report.not_done,
        retries=report.retries,
        gave_up=report.gave_up,
        start_seconds=round(start_seconds, 1),
        replay_seconds=report.seconds,
        orders_per_second=report.orders_per_second,
        legs={
            "accept": report.legs["accept"],
            "commit_to_confirm": measured.publishing,
            "placed_to_done": measured.working,
        },
        complete=report.complete and placed == measured.published == done == report.accepted,
    )


def table_of(summary: Summary) -> Table:
    """Lay the summary out for people."""
    table = Table(title=f"{summary.file}, servers: {summary.servers}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    table.add_row("invoices", f"{summary.invoices:,}")
    table.add_row("refused", f"{summary.refused:,}", "by the rule, before anything of them was sent:")
    for name, kind in summary.refused_by.items():
        table.add_row("", f"{kind.count:,}", f"{RefusalReason[name.upper()].value} ({kind.example})")
    table.add_section()
    table.add_row("placed", f"{summary.placed:,}", "answered 201, and in the database")
    table.add_row("published", f"{summary.published:,}", "confirmed by RabbitMQ")
    table.add_row("done", f"{summary.done:,}", f"{summary.orders_per_second:,.0f} orders/s from nginx to done")
    for not_done in summary.not_done:
        table.add_row("", "", f"{not_done.invoice} {not_done.order_id or ''} {not_done.what}")
    if summary.gave_up:
        table.add_row("gave up", "", summary.gave_up)
    table.add_section()
    for name, leg, what in (
        ("accept", summary.legs["accept"], "request to 201, through nginx"),
        ("publish", summary.legs["commit_to_confirm"], "commit to confirm, by the database's clock"),
        ("work", summary.legs["placed_to_done"], f"placed to done; the work alone takes {_work()}"),
    ):
        if leg.p50_ms is not None and leg.p99_ms is not None:
            table.add_row(name, f"{leg.p50_ms:,.1f} ms", f"p50; p99 {leg.p99_ms:,.1f} ms: {what}")
    return table


def serve_on(console: Console, base_url: str) -> None:
    """Keep the system up until Ctrl-C or SIGTERM."""
    console.print(
        f"\nIt serves on at {base_url} until Ctrl-C. Try:\n"
        f"  curl -s -XPOST {base_url}/order/place\n"
        f"  curl -s {base_url}/order/get/ORDER_ID\n"
        f"  curl -s {base_url}/orders -H 'Content-Type: application/json' -H 'Idempotency-Key: mine-1' \\\n"
        '    -d \'{"customer_id": "me", "currency": "GBP", "lines": [{"sku": "85123A", "quantity": 6, '
        '"unit_price_minor": 255}]}\'\n'
        f"  .venv/bin/orders replay {BUNDLED} --to {base_url} --run mine\n",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("ending: requests and orders in hand are finished first")


def _one(
    conn: psycopg.Connection, statement: LiteralString, values: dict[str, object] | None = None
) -> tuple[Any, ...]:
    row = conn.execute(statement, values).fetchone()
    assert row is not None
    return row


def _leg(orders: int, percentiles: list[float] | None) -> Leg:
    p50, p99 = percentiles or (None, None)
    return Leg(orders, _milliseconds(p50), _milliseconds(p99))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _work() -> str:
    least, most = (float(WORK[name]) * 1000 for name in ("WORK_MIN_SECONDS", "WORK_MAX_SECONDS"))
    return f"{least:g} to {most:g} ms"


def main() -> int:
    os.chdir(ROOT)
    # Both end it in the same way: what was started is stopped in its order.
    # Set, not left as it is: whoever was started in the background by a script has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    # Not that of an earlier demo.
    SUMMARY.unlink(missing_ok=True)
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    console = Console()
    try:
        return run(console, Path(sys.argv[1]) if len(sys.argv) > 1 else BUNDLED)
    except (ChoiceError, MissingProgramError, StartError, MalformedFile, OSError, psycopg.Error) as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make demo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
