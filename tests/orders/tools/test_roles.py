"""`orders roles` lets each process log in as a role of its own, or prints what an administrator has to run."""

import asyncio
import os
import sys
from typing import LiteralString
from urllib.parse import urlsplit

import msgspec
import psycopg
import pytest

from dev.sandbox import roles
from dev.sandbox.servers import Servers
from orders.database.roles import ROLES
from tests import warm

LIMITED: LiteralString = """
    SELECT count(*), sum(rolconnlimit) <= 0.8 * current_setting('max_connections')::integer
    FROM pg_roles WHERE rolconnlimit > 0 AND rolname = ANY(%s)
"""


class Result(msgspec.Struct):
    """What the command said, and how it ended."""

    exit_code: int | None
    out: str
    error: str


async def run(*words: str, **environ: str) -> Result:
    clean = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "AMQP_URL")}
    command = [sys.executable, "-m", "orders.cli", "roles", *words]
    done = await asyncio.to_thread(warm.run, command, env=clean | environ)
    return Result(done.returncode, done.stdout, done.stderr)


def passwords(database_url: str) -> dict[str, str]:
    """Those that the roles have on these servers: they are everybody's."""
    urls = {role: urlsplit(roles.url_for(role, database_url)) for role in ROLES}
    return {f"{role.upper()}_PASSWORD": str(url.password) for role, url in urls.items()}


async def test_roles_log_in(database_url: str, amqp_url: str, servers: Servers) -> None:
    """
    With the administrators' URLs the command may run any number of times; then the roles log in, and leave connections
    to people.
    """
    urls = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url, "MANAGEMENT_URL": servers.management_url or ""}
    for _ in range(2):
        done = await run(**urls, **passwords(database_url))
        assert done.exit_code == 0, done.error

    assert done.out.splitlines() == [
        f"PostgreSQL: {', '.join(ROLES)}",
        "RabbitMQ: orders_worker, orders_relay, orders_operator, orders_read",
    ]
    with psycopg.connect(roles.url_for("orders_api", database_url)) as conn:
        assert conn.execute(LIMITED, [list(ROLES)]).fetchone() == (3, True)


async def test_print(amqp_url: str) -> None:
    """
    --print needs no server and runs nothing; what it shows is for psql and rabbitmqctl.
    """
    done = await run("--print", AMQP_URL=amqp_url, ORDERS_WORKER_PASSWORD="it's")

    assert done.exit_code == 0, done.error
    assert done.out.startswith("SELECT grant_roles();\n")
    assert """ALTER ROLE "orders_worker" LOGIN PASSWORD 'it''s';\n""" in done.out
    assert """# rabbitmqctl add_user orders_worker 'it'"'"'s'\n""" in done.out
    vhost = urlsplit(amqp_url).path.removeprefix("/")
    assert f"# rabbitmqctl set_permissions -p {vhost} orders_worker '^$' '^$' '^orders\\.(work|dead)$'\n" in done.out
    assert "orders_api" not in done.out.replace("('orders_api', 0.3)", "")


async def test_no_administrator(database_url: str) -> None:
    """
    Somebody who may not change roles gets one line that says how to go on.
    """
    done = await run(DATABASE_URL=roles.url_for("orders_read", database_url), ORDERS_API_PASSWORD="x")

    assert done.exit_code == 1
    assert len(done.error.splitlines()) == 1
    assert done.error.endswith("--print shows what an administrator has to run\n")


@pytest.mark.parametrize("environ", [{}, {"ORDERS_API_PASSWORD": "x"}], ids=["no password", "no server"])
async def test_nothing_to_do(environ: dict[str, str]) -> None:
    """
    Without a password, or without a server, the command says what is missing.
    """
    done = await run(**environ)

    assert done.exit_code == 2
    assert "is set" in done.error
