"""Counts SQL statements by the process that sends them, with pg_stat_statements and a role for each kind of process.

The server is restarted for it and once more afterwards, so that nothing else is measured under its eye.
"""

import contextlib
import secrets
from collections.abc import Iterator
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from dev.sandbox.servers import Servers

LIBRARY = "pg_stat_statements"
ROLES = ("api", "relay", "worker")

AVAILABLE: LiteralString = "SELECT FROM pg_available_extensions WHERE name = %s"
CALLS: LiteralString = """
    SELECT r.rolname, sum(s.calls)::float8 FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid
    WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    GROUP BY r.rolname
"""


EACH: LiteralString = """
    SELECT r.rolname, s.query, s.calls::float8 FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid
    WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
QUOTED = 60  # characters of a statement that name it


class Counter:
    """Who sent how many statements so far; each role is for the processes of its name."""

    def __init__(self, passwords: dict[str, str]) -> None:
        self._passwords = passwords

    def url(self, database_url: str, process: str) -> str:
        """Return the way of a process (`api-1`) to this database, under its role."""
        role = process.partition("-")[0]
        parts = urlsplit(database_url)
        netloc = f"{_name(role)}:{self._passwords[role]}@{parts.netloc.rpartition('@')[2]}"
        return urlunsplit(parts._replace(netloc=netloc))

    def open(self, conn: psycopg.Connection) -> None:
        """Make the counts visible from this connection's database."""
        conn.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def read(self, conn: psycopg.Connection) -> dict[str, float]:
        """Return the statements so far by role, in this database; BEGIN and COMMIT are among them."""
        found: dict[str, float] = dict(conn.execute(CALLS).fetchall())
        return {role: found.get(_name(role), 0.0) for role in ROLES}

    def read_each(self, conn: psycopg.Connection) -> dict[str, float]:
        """Return the calls so far of each statement of each role, by the role and the statement's first words."""
        roles = {_name(role): role for role in ROLES}
        found: dict[str, float] = {}
        for owner, query, calls in conn.execute(EACH).fetchall():
            if owner in roles:
                words = " ".join(line for line in query.split("\n") if not line.strip().startswith("--")).split()
                name = f"{roles[owner]}: {' '.join(words)[:QUOTED]}"
                found[name] = found.get(name, 0.0) + calls
        return found


@contextlib.contextmanager
def counting(its: Servers) -> Iterator[Counter | None]:
    """Have the server count; `None` where it is not ours to restart, or has no pg_stat_statements."""
    if its.kind == "env" or not _is_available(its):
        yield None
        return
    passwords = {role: secrets.token_hex(8) for role in ROLES}
    with psycopg.connect(its.database_url, autocommit=True) as conn:
        conn.execute(sql.SQL("ALTER SYSTEM SET shared_preload_libraries = {}").format(LIBRARY))
        for role, password in passwords.items():
            made = sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}")
            conn.execute(made.format(sql.Identifier(_name(role)), password))
    _restart(its)
    try:
        yield Counter(passwords)
    finally:
        with psycopg.connect(its.database_url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM RESET shared_preload_libraries")
            for role in ROLES:
                conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(_name(role))))
        _restart(its)


def _name(role: str) -> str:
    return f"bench_{role}"


def _is_available(its: Servers) -> bool:
    with psycopg.connect(its.database_url, autocommit=True) as conn:
        return conn.execute(AVAILABLE, (LIBRARY,)).fetchone() is not None


def _restart(its: Servers) -> None:
    its.postgres.stop()
    its.postgres.start()
