"""Commands of an operator, on the database: `orders clients …`, `orders purge`."""

import re
from datetime import timedelta
from functools import partial

import click
from psycopg import AsyncConnection
from rich.console import Console
from rich.table import Table

from orders.api.auth import new_key
from orders.database import api_keys_table
from orders.database.purge_orders import purge_orders
from orders.tools.command_line import Parsed, fail
from orders.tools.database_command import run_on_database
from orders.tools.time_ago import parse_span

AGE = Parsed("age", partial(parse_span, units="dwy"))


@click.group()
def clients() -> None:
    """Manage the API keys of clients.

    A key gives a client access to its own orders, and to no other client's. Reads DATABASE_URL; if it is not set,
    .run/env of `make up`.
    """


@clients.command()
@click.argument("name")
def add(name: str) -> None:
    """Create an API key for the client NAME and print it.

    The database keeps only a hash of the key, so this is the only time it is shown. A client may have several keys.
    """
    if not re.fullmatch(r"[\w.@:-]{1,64}", name):
        fail("orders clients add", "NAME must be 1 to 64 letters, digits or characters of . _ - @ :", 2)
    token, key_id, key = new_key(name)
    run_on_database("orders clients add", lambda conn: api_keys_table.add(conn, key_id, key))
    click.echo(token)
    click.echo(f"the key of client {name}, id {key_id.key_id}: it is not stored and cannot be shown again", err=True)


@clients.command(name="list")
def list_() -> None:
    """List all API keys, including revoked ones."""
    table = Table("client", "key id", "made", "revoked")
    for key in run_on_database("orders clients list", api_keys_table.list_all):
        revoked = key.revoked_at.isoformat(timespec="seconds") if key.revoked_at else ""
        table.add_row(key.client, key.key_id, key.created_at.isoformat(timespec="seconds"), revoked)
    Console().print(table)


@clients.command()
@click.argument("name")
@click.option("--key", "key_id", help="Revoke only the key with this id.", show_default="all keys of the client")
def revoke(name: str, key_id: str | None) -> None:
    """Revoke the API keys of the client NAME.

    The service rejects them from about one second later on.
    """
    revoked = run_on_database("orders clients revoke", lambda conn: api_keys_table.revoke(conn, name, key_id))
    if not revoked:
        fail("orders clients revoke", f"client {name} has no such valid key")
    click.echo(f"revoked: {', '.join(revoked)}")


@click.command()
@click.option("--older-than", required=True, type=AGE, help="Minimum time since the order ended: 90d, 12w, 2y.")
@click.option("--anonymise", is_flag=True, help="Keep the orders, but remove their customer and reference.")
def purge(older_than: timedelta, *, anonymise: bool) -> None:
    """Erase or anonymise orders that ended long ago.

    An order has ended when it is done, failed or cancelled. The command also erases idempotency keys of that age. It
    works in batches of 1,000 and may run beside the live service. Events about an order stay in the outbox until the
    relay's retention removes them. Reads DATABASE_URL; if it is not set, .run/env of `make up`.
    """

    async def act(conn: AsyncConnection) -> int:
        return sum([rows async for rows in purge_orders(conn, older_than, anonymise=anonymise)])

    rows = run_on_database("orders purge", act, statement_seconds=60.0, is_one_call=False)
    click.echo(f"{rows} orders {'anonymised' if anonymise else 'erased'}")
