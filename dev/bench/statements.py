"""Counts SQL statements by the process that sends them, with pg_stat_statements, by the role of each kind of process.

The server is restarted for it and once more afterwards, so that nothing else is measured under its eye.
"""

import contextlib
from collections.abc import Iterator
from typing import LiteralString

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
    """Who sent how many statements so far; each kind of process has a role of its own."""

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
    with psycopg.connect(its.database_url, autocommit=True) as conn:
        conn.execute(sql.SQL("ALTER SYSTEM SET shared_preload_libraries = {}").format(LIBRARY))
    _restart(its)
    try:
        yield Counter()
    finally:
        with psycopg.connect(its.database_url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM RESET shared_preload_libraries")
        _restart(its)


def _name(role: str) -> str:
    return f"orders_{role}"


def _is_available(its: Servers) -> bool:
    with psycopg.connect(its.database_url, autocommit=True) as conn:
        return conn.execute(AVAILABLE, (LIBRARY,)).fetchone() is not None


def _restart(its: Servers) -> None:
    its.postgres.stop()
    its.postgres.start()
