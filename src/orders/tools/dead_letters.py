"""`orders dead`: see what failed, bring it back, or settle it for good; each change leaves an audit row."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
import psycopg
from psycopg import AsyncConnection

from orders.database import dead_letters_table, redrive_orders
from orders.database.dead_letters_table import Choice
from orders.database.errors import ErrorClass, classify
from orders.database.outbox_table import add_partitions
from orders.database.redrive_orders import Redrive
from orders.tools.command_line import fail
from orders.tools.database_command import actor, run_on_database, within

T = TypeVar("T")

CHUNK = 500
CHUNK_SECONDS = 0.1  # with a rate: how much of it goes at once


@click.group()
def dead() -> None:
    """See the orders and messages that failed, bring them back, or discard them. Reads DATABASE_URL."""


@dead.command("list")
@click.option("--reason", metavar="TEXT", help="Only reasons that contain this text.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each reason.")
def list_(reason: str | None, as_json: bool) -> None:
    """List the dead letters by reason: how many there are, and how many have an order that can be brought back."""
    groups = _on_database(lambda conn: dead_letters_table.groups(conn, reason))
    if as_json:
        for group in groups:
            click.echo(json.dumps({name: _plain(getattr(group, name)) for name in group.__struct_fields__}))
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
    """Show a dead letter, by its own id or its order's, and what was done about it, as JSON."""
    found = _on_database(lambda conn: dead_letters_table.show(conn, letter))
    if found is None:
        fail("orders dead show", f"there is no dead letter {letter}")
    click.echo(json.dumps(_plain(found), indent=2))


@dead.command()
@click.option("--id", "ids", metavar="ID", multiple=True, help="This letter, or this order's; may be repeated.")
@click.option("--reason", metavar="TEXT", help="All whose reason contains this text.")
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Orders a second; without it, at once.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--why", default="", help="For the audit.")
def redrive(
    ids: Sequence[str], reason: str | None, everything: bool, rate: float | None, dry_run: bool, why: str
) -> None:
    """Bring failed orders back: each goes its whole way again, once, however often it is asked for."""
    if sum([bool(ids), reason is not None, everything]) != 1:
        raise click.UsageError("say which: one of --id, --reason and --all")
    choice = Choice(ids=list(ids) or None, reason=reason)
    who = None if dry_run else Redrive(actor(), why)
    redriven, left = _on_database(lambda conn: _redrive(conn, choice, who, rate), is_one_call=False)
    click.echo(f"{'would redrive' if dry_run else 'redriven'}: {redriven}")
    if left:
        click.echo(f"left alone, since no failed order belongs to them: {left}; `orders dead discard` settles them")
    if ids and not redriven:
        sys.exit(1)


@dead.command()
@click.argument("letter", metavar="ID")
@click.option("--reason", required=True, help="Why, for the audit.")
def discard(letter: str, reason: str) -> None:
    """Settle a dead letter for good, by its own id or its order's; the order stays as it is."""
    if not reason.strip():
        raise click.UsageError("--reason is empty")
    discarded = _on_database(lambda conn: dead_letters_table.discard(conn, letter, actor(), reason))
    if not discarded:
        fail("orders dead discard", f"no letter {letter} is dead")
    click.echo(f"discarded: {', '.join(map(str, discarded))}")


def _on_database(act: Callable[[AsyncConnection], Awaitable[T]], *, is_one_call: bool = True) -> T:
    after_error = "; what was done is committed, so ask again"
    return run_on_database("orders dead", act, is_one_call=is_one_call, after_error=after_error)


async def _redrive(
    conn: AsyncConnection, choice: Choice, redrive: Redrive | None, rate: float | None
) -> tuple[int, int]:
    """Redrive what is chosen, in chunks; return how many were, and how many belong to no failed order."""
    chunk = CHUNK if rate is None else max(1, min(CHUNK, round(rate * CHUNK_SECONDS)))
    started = time.monotonic()
    redriven = left = above = 0
    while letters := await within(conn, dead_letters_table.chosen(conn, choice, above=above, limit=chunk)):
        above = letters[-1].id
        able = [letter.id for letter in letters if letter.is_redrivable]
        left += len(letters) - len(able)
        redriven += len(able) if redrive is None else await _redrive_chunk(conn, redrive, able)
        if rate is not None and redrive is not None:
            await asyncio.sleep(max(0.0, started + redriven / rate - time.monotonic()))
    return redriven, left


async def _redrive_chunk(conn: AsyncConnection, redrive: Redrive, letter_ids: Sequence[int]) -> int:
    while True:
        try:
            return len(await within(conn, redrive_orders.redrive_orders(conn, redrive, letter_ids)))
        except psycopg.Error as error:
            match classify(error):
                case ErrorClass.PARTITION_MISSING:
                    await within(conn, add_partitions(conn))
                case ErrorClass.RUN_AGAIN:
                    continue
                case _:
                    raise


def _plain(value: Any) -> Any:
    """Return a value as JSON can tell it."""
    match value:
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case datetime():
            return value.isoformat()
        case bytes():
            return value.decode(errors="replace")
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)
