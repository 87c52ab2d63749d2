"""A process that cannot start says why in one line, and how to mend it; nothing of it stays."""

import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest

from dev.sandbox.ports import free_port
from dev.sandbox.process import ROOT
from dev.sandbox.servers import Servers
from tests import places, warm

API, RELAY, WORKER = "orders.app", "relay", "orders.worker"

BAD_SETTING = 2
CANNOT_START = 1

# Settings that are there but wrong, each with what the line has to name.
WRONG = [
    (API, "DATABASE_URL", "mysql://localhost/orders"),
    (API, "ORDERS_PORT", "eighty"),
    (API, "ORDERS_BATCH_ROWS", "0"),
    (RELAY, "DATABASE_URL", "localhost"),
    (RELAY, "AMQP_URL", "localhost:5672"),
    (RELAY, "RELAY_PORT", "eighty"),
    (RELAY, "RELAY_BATCH_ROWS", "many"),
    (RELAY, "RELAY_RETENTION", "for ever"),
    (WORKER, "AMQP_URL", "http://localhost"),
    (WORKER, "WORKER_CONCURRENCY", "-1"),
    (WORKER, "ORDERS_HANDLER", "no handler"),
    (WORKER, "ORDERS_HANDLER", "orders.no_such_module:work"),
    (WORKER, "ORDERS_HANDLER", "orders.handlers:no_such_function"),
    (WORKER, "ORDERS_HANDLER", "orders.handlers:Retry"),
    (WORKER, "WORK_MIN_SECONDS", "a while"),
    (WORKER, "WORK_MAX_SECONDS", "0.001"),
]
MISSING = [(API, "DATABASE_URL"), (RELAY, "DATABASE_URL"), (RELAY, "AMQP_URL"), (WORKER, "AMQP_URL")]

# Nobody listens there; a setting is judged before anybody is asked.
NOWHERE = {"DATABASE_URL": "postgresql://127.0.0.1:9/orders", "AMQP_URL": "amqp://127.0.0.1:9"}


def start(module: str, settings: dict[str, str], *words: str, cold: bool = False) -> tuple[int, str]:
    """Run a process to its end, from a warm parent unless `cold`; return its code and the one line it said."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    ports = {f"{name}_PORT": str(free_port()) for name in ("ORDERS", "RELAY", "WORKER")}
    command, environ = [sys.executable, "-m", module, *words], kept | ports | settings
    if cold:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    else:
        done = warm.run(command, env=environ)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"{' '.join((module, *words))}: ")
    return done.returncode, lines[0]


@pytest.fixture
def bare_database(servers: Servers) -> Iterator[str]:
    """A database that nobody has migrated."""
    with places.database(servers) as url:
        yield url


@pytest.mark.parametrize(("module", "name", "value"), WRONG)
def test_wrong_setting(module: str, name: str, value: str) -> None:
    """
    A wrong setting is named.
    """
    code, line = start(module, NOWHERE | {name: value})

    assert code in {BAD_SETTING, CANNOT_START}
    assert name in line


@pytest.mark.parametrize(("module", "name"), MISSING)
def test_missing_setting(module: str, name: str) -> None:
    """
    A setting without a default, and not given, is named, also by a process that has nothing imported yet.
    """
    code, line = start(module, {key: value for key, value in NOWHERE.items() if key != name}, cold=True)

    assert code == BAD_SETTING
    assert name in line


@pytest.mark.parametrize("module", [API, RELAY, WORKER])
def test_schema_that_is_not_migrated(module: str, bare_database: str, topology: str) -> None:
    """
    On a database without our tables, each names the command that makes them.
    """
    code, line = start(module, {"DATABASE_URL": bare_database, "AMQP_URL": topology})

    assert code == CANNOT_START
    assert "alembic upgrade head" in line


@pytest.mark.parametrize("module", [RELAY, WORKER])
def test_topology_that_is_not_there(module: str, database_url: str, amqp_url: str) -> None:
    """
    On a broker without our queues, whoever uses it names the command that declares them.
    """
    settings = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url, "RELAY_REQUIRED_QUEUES": "orders.work"}
    code, line = start(module, settings)

    assert code == CANNOT_START
    assert "orders topology" in line


@pytest.mark.parametrize(
    "command", [(RELAY,), (WORKER,), ("orders", "topology"), (RELAY, "declare")], ids=lambda words: " ".join(words)
)
def test_broker_that_refuses(command: tuple[str, ...], database_url: str, amqp_url: str) -> None:
    """
    A missing vhost and a wrong password are told at once in RabbitMQ's own words: they do not mend themselves.
    """
    host = urlsplit(amqp_url).netloc.rpartition("@")[2]
    for url, words in (
        (urlunsplit(urlsplit(amqp_url)._replace(path="/nowhere")), "vhost nowhere not found"),
        (f"amqp://somebody:secret@{host}/", "ACCESS_REFUSED"),
    ):
        settings = {"DATABASE_URL": database_url, "AMQP_URL": url, "RELAY_EXCHANGES": "orders"}
        code, line = start(command[0], settings, *command[1:])

        assert code == CANNOT_START
        assert words in line
        assert "refuses AMQP_URL" in line
        assert "secret" not in line


def test_api_needs_no_broker(database_url: str) -> None:
    """
    The api is told nothing of RabbitMQ: with a wrong port it complains of that, and of nothing else.
    """
    code, line = start(API, {"DATABASE_URL": database_url, "AMQP_URL": "nonsense", "ORDERS_PORT": "0"})

    assert code == BAD_SETTING
    assert "ORDERS_PORT" in line


def test_servers_that_never_answer(database_url: str) -> None:
    """
    Who waits in vain for a server names it, and the setting that says where it is.
    """
    for urls, name in (
        (NOWHERE, "DATABASE_URL"),
        (NOWHERE | {"DATABASE_URL": database_url}, "AMQP_URL"),
    ):
        code, line = start(RELAY, urls | {"RELAY_START_SECONDS": "0.2"})

        assert code == CANNOT_START
        assert name in line
