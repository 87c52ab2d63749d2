"""Bring a database to a revision: one migrator at a time, each revision in a transaction of its own."""

import os
import sys
import time

import psycopg
from alembic import context
from sqlalchemy import create_engine, pool
from sqlalchemy.exc import OperationalError

LOCK = 0x6F_72_64_65_72_73  # "orders": whoever migrates this database holds it
LOCK_WAIT_SECONDS = 300
SESSION = "-c lock_timeout=5s -c client_min_messages=warning"


def database_url() -> str:
    """Return DATABASE_URL, or end with the one line that says what is missing."""
    url = os.environ.get("DATABASE_URL")
    if not url:
        sys.exit("alembic: DATABASE_URL is not set; give it a libpq URL, as in postgresql://user@host/database")
    return url


def take_lock(conn: psycopg.Connection) -> None:
    """Wait for other migrators by asking again and again.

    A wait inside `pg_advisory_lock` holds a snapshot, and so deadlocks with another's CREATE INDEX CONCURRENTLY.
    """
    end = time.monotonic() + LOCK_WAIT_SECONDS
    while conn.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone() != (True,):
        if time.monotonic() > end:
            sys.exit(f"alembic: another migration has held its lock for {LOCK_WAIT_SECONDS} s; see pg_locks")
        time.sleep(0.1)


def migrate_online() -> None:
    """Migrate the database behind DATABASE_URL."""
    url = database_url()

    def connect() -> psycopg.Connection:
        # libpq reads the URL itself, so several hosts and every libpq parameter work as they are.
        conn = psycopg.connect(
            url, autocommit=True, connect_timeout=10, options=SESSION, target_session_attrs="read-write"
        )
        take_lock(conn)
        conn.autocommit = False
        return conn

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=pool.NullPool)
    try:
        connection = engine.connect()
    except OperationalError as error:
        sys.exit(f"alembic: no connection to PostgreSQL: {str(error.orig).splitlines()[0]}; is DATABASE_URL right?")
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
