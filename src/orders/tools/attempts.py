"""`orders get ID --attempts`: how the attempts at an order ended, read from the database, for operators."""

from collections.abc import Sequence
from uuid import UUID

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from orders.database import attempt_log
from orders.database.attempt_log import Attempt
from orders.tools.command_line import fail
from orders.tools.database_command import run_on_database

PROGRAM = "orders get"


def print_attempts(order_id: UUID, *, as_json: bool) -> None:
    """Print the attempts at an order, the oldest first; end the process with one line if there is no such order."""
    attempts = run_on_database(PROGRAM, lambda conn: attempt_log.read(conn, order_id))
    if attempts is None:
        fail(PROGRAM, f"there is no order {order_id}")
    if as_json:
        for attempt in attempts:
            click.echo(msgspec.json.encode(attempt))
    elif attempts:
        Console().print(_table(attempts))
    else:
        click.echo("nothing to tell: no attempt has failed or was cut off")


def _table(attempts: Sequence[Attempt]) -> Table:
    """Lay out attempts for a terminal of 80 columns: worker and reason have lines of their own below the times."""
    table = Table(
        Column("#", justify="right"), Column("started", no_wrap=True), Column("ended", no_wrap=True), "how", "next try",
        box=None, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for each in attempts:
        times = [f"{at:%m-%d %H:%M:%S}" if at else "" for at in (each.started, each.ended, each.next_try)]
        below = [text for text in (each.worker, each.reason) if text]
        table.add_row(str(each.attempt), times[0], times[1], escape("\n".join([each.outcome, *below])), times[2])
    return table
