"""Commands for whoever runs the service, on its database: `orders clients …`, `orders purge`."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import click
import psycopg
from psycopg import AsyncConnection
from rich.console import Console
from rich.table import Table

from orders.api.auth import new_key
from orders.database import api_keys_table, postgres
from orders.database.purge_orders import purge_orders
from orders.runtime.settings import DatabaseSettings

T = TypeVar("T")

DAYS = {"d": 1, "w": 7, "y": 365}


def run_on_database(program: str, act: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Run `act` on the database of DATABASE_URL, or end with the one line that says what is wrong."""
    settings = DatabaseSettings.read_or_exit(program)

    async def connected() -> T:
        conn = await postgres.connect(settings.database_url, program.replace(" ", "-"), statement_timeout="60000")
        try:
            return await act(conn)
        finally:
            await postgres.close(conn)

    try:
        return asyncio.run(connected())
    except psycopg.errors.UndefinedTable:
        click.echo(f"{program}: the database is not migrated: run `alembic upgrade head`", err=True)
    except psycopg.Error as error:
        click.echo(f"{program}: {str(error).splitlines()[0]}", err=True)
    sys.exit(1)


@click.group()
def clients() -> None:
    """API keys: who may see and cancel which orders. Reads DATABASE_URL."""


@clients.command()
@click.argument("name")
def add(name: str) -> None:
    """Make an API key for the client NAME, and show it this once; a client may have several."""
    if not re.fullmatch(r"[\w.@:-]{1,64}", name):
        click.echo("orders clients add: NAME has 1 to 64 letters, digits, or any of . _ - @ :", err=True)
        sys.exit(2)
    token, key_id, key = new_key(name)
    run_on_database("orders clients add", lambda conn: api_keys_table.add(conn, key_id, key))
    click.echo(token)
    click.echo(f"the key of client {name}, id {key_id.key_id}: it is not stored and will not be shown again", err=True)


@clients.command(name="list")
def list_() -> None:
    """List all API keys, revoked ones too."""
    table = Table("client", "key id", "made", "revoked")
    for key in run_on_database("orders clients list", api_keys_table.list_all):
        revoked = key.revoked_at.isoformat(timespec="seconds") if key.revoked_at else ""
        table.add_row(key.client, key.key_id, key.created_at.isoformat(timespec="seconds"), revoked)
    Console().print(table)


@clients.command()
@click.argument("name")
@click.option("--key", "key_id", help="Only the key with this id; without it, all of the client's.")
def revoke(name: str, key_id: str | None) -> None:
    """Revoke the API keys of the client NAME: they are refused about a second later."""
    revoked = run_on_database("orders clients revoke", lambda conn: api_keys_table.revoke(conn, name, key_id))
    if not revoked:
        click.echo(f"orders clients revoke: client {name} has no such valid key", err=True)
        sys.exit(1)
    click.echo(f"revoked: {', '.join(revoked)}")


class Age(click.ParamType[timedelta]):
    """A time span as people write it: 90d, 12w, 2y."""

    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the span."""
        match = re.fullmatch(r"([0-9]{1,5})([dwy])", str(value))
        if match is None:
            self.fail(f"{value!r} is no age: write 90d, 12w or 2y")
        return timedelta(days=int(match[1]) * DAYS[match[2]])


@click.command()
@click.option("--older-than", required=True, type=Age(), help="Since the order reached its end: 90d, 12w, 2y.")
@click.option("--anonymise", is_flag=True, help="Keep the orders, but not whose they are: no customer, no reference.")
def purge(older_than: timedelta, *, anonymise: bool) -> None:
    """Forget orders that are done, failed or cancelled, and idempotency keys of that age.

    In batches of 1,000, at any time, beside the running service. Reads DATABASE_URL.
    Events about an order are kept by the outbox for as long as the relay's own retention says.
    """

    async def act(conn: AsyncConnection) -> int:
        return sum([rows async for rows in purge_orders(conn, older_than, anonymise=anonymise)])

    rows = run_on_database("orders purge", act)
    click.echo(f"{rows} orders {'anonymised' if anonymise else 'erased'}")
