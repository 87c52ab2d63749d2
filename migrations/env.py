"""Bring a database to a revision: one migrator at a time, each revision in a transaction of its own."""

import asyncio
import os
import sys
import time

import psycopg
from alembic import context
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import create_engine, pool
from sqlalchemy.exc import OperationalError

from orders.database import session_probe
from orders.runtime.setting_files import value_of

LOCK = 0x6F_72_64_65_72_73  # "orders": whoever migrates this database holds it
LOCK_WAIT_SECONDS = 300
# A role or a database may give its sessions short timeouts; those of a migration are its own.
SESSION = {
    "lock_timeout": "5s",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "client_min_messages": "warning",
    "standard_conforming_strings": "on",
}
CONNECT_SECONDS = 10


def database_url() -> str:
    """Return DATABASE_URL, or end with the one line that says what is missing."""
    try:
        url = value_of(os.environ, "DATABASE_URL")
    except ValueError as error:
        sys.exit(f"alembic: {error}")
    if not url:
        sys.exit("alembic: DATABASE_URL is not set; give it a libpq URL, as in postgresql://user@host/database")
    return url


def require_utf8(conn: psycopg.Connection) -> None:
    """End with one line if the database cannot hold every text."""
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        sys.exit(
            f"alembic: the encoding of this database is {encoding}, and orders need UTF8: "
            "make it with `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0`"
        )


async def fault_of_session(url: str, ours: str) -> str:
    """Return why a migration's lock and settings would not be its own, and the remedy; "" if they are.

    `ours` is `url` with our settings.
    """
    conns = []
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            conns.append(await psycopg.AsyncConnection.connect(session_probe.marked(ours), autocommit=True))
            beside = session_probe.beside(ours, conns[0])
            conns.append(await psycopg.AsyncConnection.connect(beside, autocommit=True))
            return await session_probe.fault_of_session(url, *conns)
    except TimeoutError:
        raise psycopg.OperationalError(f"no answer in {CONNECT_SECONDS} s") from None
    finally:
        for conn in conns:
            await conn.close()


def take_lock(conn: psycopg.Connection) -> None:
    """Wait for other migrators by asking again and again.

    A wait inside `pg_advisory_lock` holds a snapshot, and so deadlocks with another's CREATE INDEX CONCURRENTLY.
    """
    end = time.monotonic() + LOCK_WAIT_SECONDS
    while conn.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone() != (True,):
        if time.monotonic() > end:
            sys.exit(f"alembic: another migration has held its lock for {LOCK_WAIT_SECONDS} s; see pg_locks")
        time.sleep(0.1)


def tell(notice: psycopg.errors.Diagnostic) -> None:
    """Show a warning of PostgreSQL, such as that of a revision that could not do all."""
    print(f"alembic: {notice.message_primary}", file=sys.stderr)


def migrate_online() -> None:
    """Migrate the database behind DATABASE_URL."""
    url = database_url()

    def connect() -> psycopg.Connection:
        # libpq reads the URL itself, so several hosts and every libpq parameter work as they are.
        options = [str(conninfo_to_dict(url).get("options") or ""), *(f"-c {key}={SESSION[key]}" for key in SESSION)]
        ours = make_conninfo(
            url,
            options=" ".join(options).strip(),
            connect_timeout=CONNECT_SECONDS,
            client_encoding="UTF8",
            target_session_attrs="read-write",
        )
        if fault := asyncio.run(fault_of_session(url, ours)):
            sys.exit(f"alembic: {fault}")
        conn = psycopg.connect(ours, autocommit=True)
        require_utf8(conn)
        # Once more: a pooler drops options, and libpq lets PGDATESTYLE win over them.
        for name, value in (SESSION | {"datestyle": "ISO"}).items():
            conn.execute("SELECT set_config(%s, %s, false)", [name, value])
        conn.add_notice_handler(tell)
        take_lock(conn)
        conn.autocommit = False
        return conn

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=pool.NullPool)
    try:
        connection = engine.connect()
    except OperationalError as error:
        reason = str(error.orig).splitlines()[0]
        if isinstance(error.orig, psycopg.Error) and error.orig.sqlstate:  # it is connected, and was answered
            sys.exit(f"alembic: PostgreSQL ended the first statement: {reason}")
        if isinstance(error.orig, psycopg.Error) and (refusal := session_probe.words_of_refusal(error.orig)):
            sys.exit(f"alembic: {refusal}")
        sys.exit(f"alembic: no connection to PostgreSQL: {reason}; is DATABASE_URL right?")
    with connection:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()


def migrate_offline() -> None:
    """Print the statements instead of running them (`--sql`)."""
    context.configure(dialect_name="postgresql", literal_binds=True, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    migrate_offline()
else:
    migrate_online()
