"""Commands of an operator, on the database: `orders clients …`, `orders purge`."""

import re
from datetime import UTC, datetime, timedelta
from functools import partial

import click
from psycopg import AsyncConnection
from rich.console import Console
from rich.table import Column, Table

from orders.api.auth import new_key
from orders.database import api_keys_table
from orders.database.api_keys_table import SCOPES, KeyId, Scope
from orders.database.purge_orders import purge_orders
from orders.tools.command_line import Parsed, fail
from orders.tools.database_command import run_on_database
from orders.tools.time_ago import parse_span

AGE = Parsed("age", partial(parse_span, units="dwy"))
LIFETIME = Parsed("age", partial(parse_span, units="smhdwy"))


@click.group()
def clients() -> None:
    """Manage the API keys of clients.

    A key gives a client access to its own orders, and to no other client's. Reads DATABASE_URL; if it is not set,
    .run/env of `make up`.
    """


def _show(client: str, token: str, key_id: KeyId) -> None:
    click.echo(token)
    click.echo(f"the key of client {client}, id {key_id.key_id}: it is not stored and cannot be shown again", err=True)


@clients.command()
@click.argument("name")
@click.option("--label", default="", help="Who has the key, or what it is for: up to 64 characters.")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="What it may do; repeatable.",
    show_default="everything",
)  # fmt: skip
@click.option("--expires", type=LIFETIME, metavar="AGE", help="When it ends: 12h, 90d, 1y.", show_default="never")
def add(name: str, label: str, scopes: tuple[Scope, ...], expires: timedelta | None) -> None:
    """Create an API key for the client NAME and print it.

    The database keeps only a hash of the key, so this is the only time it is shown. A client may have several keys.
    """
    if not re.fullmatch(r"[\w.@:-]{1,64}", name):
        fail("orders clients add", "NAME must be 1 to 64 letters, digits or characters of . _ - @ :", 2)
    if len(label) > 64:
        fail("orders clients add", "--label has more than 64 characters", 2)
    token, key_id, key = new_key(name, frozenset(scopes or SCOPES))
    run_on_database("orders clients add", lambda conn: api_keys_table.add(conn, key_id, key, label, expires))
    _show(name, token, key_id)


@clients.command()
@click.argument("name")
@click.option("--key", "key_id", help="Replace only the key with this id.", show_default="all keys of the client")
@click.option(
    "--overlap", type=LIFETIME, default="1d", show_default=True, metavar="AGE", help="How long the old key still works."
)
@click.option("--expires", type=LIFETIME, metavar="AGE", help="When the new key ends: 90d, 1y.", show_default="never")
def roll(name: str, key_id: str | None, overlap: timedelta, expires: timedelta | None) -> None:
    """Print a new API key for client NAME, and end the old.

    The new key has the label and the scopes of the one that it replaces (of the newest, if it replaces several).
    """

    async def act(conn: AsyncConnection) -> tuple[str, KeyId, list[str]] | None:
        async with conn.transaction():
            old = await api_keys_table.read_newest(conn, name, key_id)
            if old is None:
                return None
            token, new, key = new_key(name, frozenset(old.scopes))
            await api_keys_table.add(conn, new, key, old.name, expires)
            return token, new, await api_keys_table.end_others(conn, name, new, key_id, overlap)

    rolled = run_on_database("orders clients roll", act)
    if rolled is None:
        fail("orders clients roll", f"client {name} has no such valid key")
    token, new, ending = rolled
    _show(name, token, new)
    if ending:
        click.echo(f"these end by themselves: {', '.join(ending)}", err=True)


@clients.command(name="list")
def list_() -> None:
    """List all API keys, also expired and revoked ones.

    Times are in UTC.
    """
    now = datetime.now(UTC)
    table = Table("client", Column("key id", no_wrap=True), "label", "may", "made", "last used", "ends")
    for key in run_on_database("orders clients list", api_keys_table.list_all):
        expired = "expired" if key.expires_at and key.expires_at <= now else _day(key.expires_at)
        scopes = "all" if set(key.scopes) == set(SCOPES) else ", ".join(s.removeprefix("orders:") for s in key.scopes)
        table.add_row(
            key.client, key.key_id, key.name, scopes, _day(key.created_at), _day(key.last_used_at),
            f"revoked {_day(key.revoked_at)}" if key.revoked_at else expired,
        )  # fmt: skip
    Console().print(table)


def _day(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if moment else ""


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
@click.option("--anonymise", is_flag=True, help="Keep the orders, but remove customer, reference and attempts.")
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
