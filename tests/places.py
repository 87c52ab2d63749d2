"""A database and a vhost of a test's own, on servers that many tests share."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from dev.sandbox.servers import Servers
from dev.sandbox.vhosts import Management, with_vhost

NOTHING = sql.SQL("")

_sessions: dict[str, psycopg.Connection] = {}


class NoVhostsError(Exception):
    """The broker's management plugin does not answer, and without it there is no vhost per test."""


def with_database(database_url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(database_url)._replace(path=f"/{name}"))


@contextmanager
def database(servers: Servers, template: str | None = None, rest: sql.Composable = NOTHING) -> Iterator[str]:
    """A new database, empty or copied from a template; dropped afterwards with whoever is still connected.

    `rest` ends the statement that makes it.
    """
    name = f"test_{secrets.token_hex(6)}"
    # Copied as files: in memory, half of what it costs to write each page into the log as well.
    copied = sql.SQL(" TEMPLATE {} STRATEGY FILE_COPY")
    source = NOTHING if template is None else copied.format(sql.Identifier(template))
    administer(servers, "CREATE DATABASE {}", name, source + rest)
    try:
        yield with_database(servers.database_url, name)
    finally:
        administer(servers, "DROP DATABASE {} WITH (FORCE)", name)


@contextmanager
def vhost(servers: Servers) -> Iterator[str]:
    """A new vhost without a single exchange or queue of ours; removed afterwards."""
    assert servers.management_url is not None
    require_vhosts(servers.management_url)
    management = Management(servers.management_url)
    name = f"test_{secrets.token_hex(6)}"
    management.add(name)
    try:
        yield with_vhost(servers.amqp_url, name)
    finally:
        management.remove(name)


@lru_cache
def require_vhosts(management_url: str) -> None:
    """Raise NoVhostsError unless the management plugin answers; asked once for each broker."""
    if not Management(management_url).answers():
        raise NoVhostsError(
            f"no management plugin answers at {urlsplit(management_url).netloc.rpartition('@')[2]}: "
            "tests need it to make a vhost each; MANAGEMENT_URL says where it is"
        )


def administer(servers: Servers, statement: LiteralString, name: str, rest: sql.Composable = NOTHING) -> None:
    """CREATE or DROP DATABASE, which take no parameters and no transaction, in a session that is kept."""
    command = sql.SQL(statement).format(sql.Identifier(name)) + rest
    kept = _sessions.pop(servers.database_url, None)
    try:
        if kept is None:
            kept = psycopg.connect(servers.database_url, autocommit=True, connect_timeout=10)
        else:
            kept.execute("SELECT")
    except psycopg.OperationalError:
        # A server that was restarted meanwhile.
        if kept is None:
            raise
        kept.close()
        kept = psycopg.connect(servers.database_url, autocommit=True, connect_timeout=10)
    _sessions[servers.database_url] = kept
    kept.execute(command)


def forget() -> None:
    """Close the sessions that are kept."""
    while _sessions:
        _sessions.popitem()[1].close()
