"""`orders dead`: list, redrive and discard dead letters; each change adds an audit row."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

import click
import msgspec
import psycopg
from psycopg import AsyncConnection

from orders.database import dead_letters_table, redrive_orders
from orders.database.dead_letters_table import LetterSelection
from orders.database.errors import ErrorClass, classify
from orders.database.outbox_table import add_partitions
from orders.database.redrive_orders import Redrive
from orders.tools.actor import actor
from orders.tools.command_line import fail
from orders.tools.database_command import run_on_database, within

T = TypeVar("T")

RATE = click.FloatRange(min=0, min_open=True)
CHUNK = 500  # dead letters
CHUNK_SECONDS = 0.1  # with --rate, a chunk has the orders of so much time
LOCKED_TRIES = 10  # for orders that another session has locked
LOCKED_PAUSE_SECONDS = 0.1


@click.group()
def dead() -> None:
    """List, redrive or discard dead letters.

    A dead letter is an order that failed, or a message that no worker can use. Each change adds an audit row. Reads
    DATABASE_URL; if it is not set, .run/env of `make up`.
    """


@dead.command("list")
@click.option("--reason", metavar="TEXT", help="Only reasons that contain TEXT, in any case.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per reason.")
def list_(reason: str | None, as_json: bool) -> None:
    """Count the dead letters by reason.

    The column `redrivable` counts those whose order can be redriven.
    """
    groups = _on_database(lambda conn: dead_letters_table.groups(conn, reason))
    if as_json:
        for group in groups:
            click.echo(json.dumps(msgspec.structs.asdict(group), default=_as_json))
        return
    if not groups:
        click.echo("no dead letters")
        return
    click.echo(f"{'letters':>8} {'redrivable':>10}  {'newest':<20}  {'kind':<13}  reason")
    for group in groups:
        newest = group.newest.strftime("%Y-%m-%d %H:%M:%S")
        click.echo(f"{group.letters:>8} {group.redrivable:>10}  {newest:<20}  {group.kind:<13}  {group.reason}")
    click.echo(f"{sum(group.letters for group in groups):>8} {sum(group.redrivable for group in groups):>10}  in all")


@dead.command()
@click.argument("letter", metavar="ID")
def show(letter: str) -> None:
    """Print a dead letter and its audit rows as JSON.

    ID is the id of the dead letter or of its order.
    """
    found = _on_database(lambda conn: dead_letters_table.show(conn, letter))
    if found is None:
        fail("orders dead show", f"there is no dead letter {letter}")
    click.echo(json.dumps(found, indent=2, default=_as_json))


@dead.command()
@click.option("--id", "ids", metavar="ID", multiple=True, help="Id of a dead letter or of its order; repeatable.")
@click.option("--reason", metavar="TEXT", help="All dead letters whose reason contains TEXT, in any case.")
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@click.option("--rate", type=RATE, help="Maximum number of orders per second.", show_default="no limit")
@click.option("--dry-run", is_flag=True, help="Change nothing; only count.")
@click.option("--why", default="", help="The reason, for the audit.")
def redrive(
    ids: Sequence[str], reason: str | None, everything: bool, rate: float | None, dry_run: bool, why: str
) -> None:
    """Place failed orders again.

    Choose them by --id, --reason or --all. A redriven order is worked from the start. Running the command twice
    redrives an order once.
    """
    if sum([bool(ids), reason is not None, everything]) != 1:
        raise click.UsageError("choose dead letters by one of --id, --reason and --all")
    selection = LetterSelection(ids=list(ids) or None, reason=reason)

    def act(conn: AsyncConnection) -> Awaitable[tuple[int, int, int]]:
        who = None if dry_run else Redrive(actor(conn.info.user), why)
        return _redrive(conn, selection, who, rate)

    redriven, left, locked = _on_database(act, is_one_call=False)
    click.echo(f"{'would redrive' if dry_run else 'redriven'}: {redriven}")
    if left:
        click.echo(f"left alone, since no failed order belongs to them: {left}; `orders dead discard` settles them")
    if locked:
        fail("orders dead redrive", f"another session has locked {locked} of these orders: run the command again")
    if ids and not redriven:
        sys.exit(1)


@dead.command()
@click.argument("letter", metavar="ID")
@click.option("--reason", required=True, help="The reason, for the audit.")
def discard(letter: str, reason: str) -> None:
    """Settle a dead letter without a redrive.

    ID is the id of the dead letter or of its order. The order stays as it is.
    """
    if not reason.strip():
        raise click.UsageError("--reason is empty")
    discarded = _on_database(lambda conn: dead_letters_table.discard(conn, letter, actor(conn.info.user), reason))
    if not discarded:
        fail("orders dead discard", f"no letter {letter} is dead")
    click.echo(f"discarded: {', '.join(map(str, discarded))}")


def _on_database(act: Callable[[AsyncConnection], Awaitable[T]], *, is_one_call: bool = True) -> T:
    after_error = "; all changes so far are committed: run the command again"
    return run_on_database("orders dead", act, is_one_call=is_one_call, after_error=after_error)


async def _redrive(
    conn: AsyncConnection, selection: LetterSelection, redrive: Redrive | None, rate: float | None
) -> tuple[int, int, int]:
    """Redrive the chosen dead letters in chunks; return how many, how many have no failed order, how many are locked.

    `rate` is the maximum number of orders per second. Without `redrive`, change nothing and only count.
    """
    chunk = CHUNK if rate is None else max(1, min(CHUNK, round(rate * CHUNK_SECONDS)))
    started = time.monotonic()
    redriven = left = locked = above = 0
    while letters := await within(conn, dead_letters_table.select(conn, selection, above=above, limit=chunk)):
        above = letters[-1].id
        able = [letter.id for letter in letters if letter.is_redrivable]
        left += len(letters) - len(able)
        if redrive is None:
            redriven += len(able)
        else:
            done, skipped = await _redrive_chunk(conn, redrive, able)
            redriven, locked = redriven + done, locked + skipped
        if rate is not None and redrive is not None:
            await asyncio.sleep(max(0.0, started + redriven / rate - time.monotonic()))
    return redriven, left, locked


async def _redrive_chunk(conn: AsyncConnection, redrive: Redrive, letter_ids: Sequence[int]) -> tuple[int, int]:
    """Redrive these dead letters; return how many, and how many are left since another session has locked them."""
    redriven, tries = 0, 0
    while True:
        try:
            done = await within(conn, redrive_orders.redrive_orders(conn, redrive, letter_ids))
            redriven, tries = redriven + len(done), tries + 1
            if len(done) < len(letter_ids):
                letter_ids = await within(conn, redrive_orders.still_failed(conn, letter_ids))
            else:
                letter_ids = []
            if not letter_ids or tries == LOCKED_TRIES:
                return redriven, len(letter_ids)
            await asyncio.sleep(LOCKED_PAUSE_SECONDS)
        except psycopg.Error as error:
            match classify(error):
                case ErrorClass.PARTITION_MISSING:
                    await within(conn, add_partitions(conn))
                case ErrorClass.RUN_AGAIN:
                    continue
                case _:
                    raise


def _as_json(value: object) -> str:
    """Represent a value that JSON has no type for: a time, a message's body, an id."""
    match value:
        case datetime():
            return value.isoformat()
        case bytes():
            return value.decode(errors="replace")
        case _:
            return str(value)
