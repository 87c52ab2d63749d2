"""The roles of the processes: what the migration makes of them, also where it may not do all."""

import secrets
from collections.abc import Callable, Iterator
from typing import LiteralString
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from dev.sandbox.servers import Servers
from tests import places
from tests.migrations.conftest import Alembic

OWNERS_OF_THE_OUTBOX: LiteralString = """
    SELECT DISTINCT relowner::regrole::text FROM pg_class
    WHERE relname ~ '^outbox' AND relkind IN ('r', 'p', 'S') ORDER BY 1
"""
OWNER_OF_THE_FUNCTION: LiteralString = """
    SELECT proowner::regrole::text FROM pg_proc WHERE proname = 'outbox_add_partitions'
"""
GRANTED: LiteralString = """
    SELECT count(*) FROM (
        SELECT relacl FROM pg_class UNION ALL SELECT proacl FROM pg_proc UNION ALL SELECT nspacl FROM pg_namespace
        UNION ALL SELECT attacl FROM pg_attribute UNION ALL SELECT defaclacl FROM pg_default_acl
    ) AS of (acl), aclexplode(acl) AS entry
    WHERE entry.grantee::regrole::text LIKE 'orders\\_%'
"""


def column(conn: psycopg.Connection, query: LiteralString) -> list[str]:
    return [row[0] for row in conn.execute(query).fetchall()]


@pytest.fixture
def owner_url(servers: Servers) -> Iterator[str]:
    """A database of a role that may log in and owns it, and nothing more; the tables go to a schema `sales`."""
    name = f"owner_{secrets.token_hex(4)}"
    with psycopg.connect(servers.database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(name)))
        with places.database(servers, rest=sql.SQL(" OWNER {}").format(sql.Identifier(name))) as url:
            parts = urlsplit(url)
            own = urlunsplit(parts._replace(netloc=f"{name}:x@{parts.netloc.rpartition('@')[2]}"))
            with psycopg.connect(own) as conn:
                conn.execute("CREATE SCHEMA sales")
            yield f"{own}?options={quote('-c search_path=sales')}"
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def as_administrator(servers: Servers, url: str) -> psycopg.Connection:
    parts = urlsplit(url)
    return psycopg.connect(
        places.with_database(servers.database_url, parts.path.removeprefix("/")),
        autocommit=True,
        options="-c search_path=sales",
    )


def test_outbox_belongs_to_the_relay(database_url: str) -> None:
    """
    The relay's role owns the outbox with its partitions, also those that another role has made.
    """
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("SET ROLE orders_api")
        made = conn.execute("SELECT outbox_add_partitions(15)").fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("DROP TABLE outbox_from_1")

        assert made == (5,)
        assert column(conn, OWNERS_OF_THE_OUTBOX) == column(conn, OWNER_OF_THE_FUNCTION) == ["orders_relay"]


def test_owner_who_may_not_grant_roles(servers: Servers, owner_url: str, start_alembic: Alembic) -> None:
    """
    An owner that cannot become a member of the relay's role migrates all the same, keeps the outbox, and is told what
    to run; once an administrator has run it, the owner still has every right.
    """
    migration = start_alembic(owner_url, "upgrade", "head")
    _, said = migration.communicate(timeout=60)

    assert migration.returncode == 0, said
    assert len(said.splitlines()) == 1, said
    assert "the outbox stays with owner_" in said
    assert "run `orders roles` as an administrator" in said
    with psycopg.connect(owner_url, autocommit=True) as conn:
        owner = conn.info.user
        assert column(conn, OWNERS_OF_THE_OUTBOX) == [owner]

        with as_administrator(servers, owner_url) as admin:
            admin.execute("SELECT grant_roles()")
            admin.execute("SET ROLE orders_worker")
            admin.execute("SELECT FROM orders LIMIT 0")

        assert column(conn, OWNERS_OF_THE_OUTBOX) == column(conn, OWNER_OF_THE_FUNCTION) == ["orders_relay"]
        made = conn.execute("SELECT outbox_add_partitions(12)").fetchone()
        conn.execute("ALTER TABLE outbox DETACH PARTITION outbox_from_1 CONCURRENTLY")
        conn.execute("DROP TABLE outbox_from_1")
        assert made == (2,)


def test_outbox_of_another_role_stays(servers: Servers, owner_url: str, start_alembic: Alembic) -> None:
    """
    An outbox that belongs to a relay's role of somebody's own choice stays with it, and its other rights are untouched.
    """
    assert start_alembic(owner_url, "upgrade", "0012").communicate(timeout=60)[1] == ""
    with as_administrator(servers, owner_url) as admin:
        admin.execute("ALTER TABLE outbox OWNER TO CURRENT_USER")
        admin_name = admin.info.user
    said = start_alembic(owner_url, "upgrade", "head").communicate(timeout=60)[1]

    assert "the outbox belongs to another role" in said.splitlines()[0]
    with psycopg.connect(owner_url) as conn:
        [[owner]] = conn.execute("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'outbox'").fetchall()
    assert owner == admin_name


def test_downgrade_revokes(bare_database: str, run_alembic: Callable[..., str]) -> None:
    """
    The way back leaves no right of any role, and returns the outbox to the owner of the other tables.
    """
    run_alembic(bare_database, "upgrade", "head")
    with psycopg.connect(bare_database, autocommit=True) as conn:
        [[granted]] = conn.execute(GRANTED).fetchall()
        run_alembic(bare_database, "downgrade", "0012")

        assert granted > 50
        assert conn.execute(GRANTED).fetchall() == [(0,)]
        assert column(conn, OWNERS_OF_THE_OUTBOX) == column(conn, OWNER_OF_THE_FUNCTION) == [conn.info.user]
