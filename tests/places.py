"""A database and a vhost of a test's own, on servers that many tests share."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from dev.sandbox.servers import Servers
from dev.sandbox.vhosts import Management, with_vhost

NOTHING = sql.SQL("")


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
    source = NOTHING if template is None else sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
    administer(servers, "CREATE DATABASE {}", name, source + rest)
    try:
        yield with_database(servers.database_url, name)
    finally:
        administer(servers, "DROP DATABASE {} WITH (FORCE)", name)


@contextmanager
def vhost(servers: Servers) -> Iterator[str]:
    """A new vhost without a single exchange or queue of ours; removed afterwards."""
    assert servers.management_url is not None
    management = Management(servers.management_url)
    if not management.answers():
        raise NoVhostsError(
            f"no management plugin answers at {urlsplit(servers.management_url).netloc.rpartition('@')[2]}: "
            "tests need it to make a vhost each; MANAGEMENT_URL says where it is"
        )
    name = f"test_{secrets.token_hex(6)}"
    management.add(name)
    try:
        yield with_vhost(servers.amqp_url, name)
    finally:
        management.remove(name)


def administer(servers: Servers, statement: LiteralString, name: str, rest: sql.Composable = NOTHING) -> None:
    # CREATE and DROP DATABASE take no parameters and no transaction.
    with psycopg.connect(servers.database_url, autocommit=True, connect_timeout=10) as conn:
        conn.execute(sql.SQL(statement).format(sql.Identifier(name)) + rest)
