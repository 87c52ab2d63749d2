"""The servers of a test can be stopped, killed and paused, and come back with their data."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from dev.sandbox.process import ROOT, wait_until
from dev.sandbox.servers import Server, Servers
from dev.sandbox.vhosts import Management

OWNER = """
import sys, time
from dev.sandbox.choice import Choice
from dev.sandbox.servers import servers
with servers(Choice(sys.argv[1], "this test")) as opened:
    opened.postgres.pause()
    opened.rabbitmq.pause()
    print(opened.database_url, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder that other users get through; pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_postgres_comes_back(own_servers: Servers, fault: str) -> None:
    """
    PostgreSQL that was stopped or killed starts on its port with what was committed.
    """
    table = f"kept_{secrets.token_hex(4)}"
    execute(own_servers, f"CREATE TABLE {table} ()")
    do(own_servers.postgres, fault)
    with pytest.raises(psycopg.OperationalError):
        execute(own_servers, "SELECT")
    own_servers.postgres.start()

    execute(own_servers, f"DROP TABLE {table}")


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_rabbitmq_comes_back(own_servers: Servers, fault: str) -> None:
    """
    RabbitMQ that was stopped or killed starts on its ports with its vhosts.
    """
    assert own_servers.management_url is not None
    management = Management(own_servers.management_url)
    vhost = f"kept_{secrets.token_hex(4)}"
    management.add(vhost)
    do(own_servers.rabbitmq, fault)
    assert not management.answers()
    own_servers.rabbitmq.start()

    assert vhost in management.names()
    management.remove(vhost)


def test_paused_server(own_servers: Servers) -> None:
    """
    A paused server takes connections in the kernel and answers nobody, until it is resumed.
    """
    assert own_servers.management_url is not None
    management = Management(own_servers.management_url, seconds=0.5)
    own_servers.rabbitmq.pause()
    assert not management.answers()
    own_servers.rabbitmq.resume()

    wait_until(management.answers, 10, lambda: "it does not answer again")


def test_durable(own_servers: Servers) -> None:
    """
    A test that kills PostgreSQL proves something: what it answered for was flushed.
    """
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        with psycopg.connect(own_servers.database_url) as conn:
            assert conn.execute(f"SHOW {setting}".encode()).fetchone() == ("on",)


def test_owner_is_killed(passable: Path, servers: Servers) -> None:
    """
    With kill -9 of their owner, servers are gone within seconds, also paused ones, and so is their folder.
    """
    kind = "local" if servers.kind == "env" else servers.kind
    environ = os.environ | {"TMPDIR": str(passable)}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, kind], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith("postgresql://")
        owner.kill()

    wait_until(lambda: not running_below(passable), 20, lambda: f"{running_below(passable)} live on")
    wait_until(lambda: not list(passable.iterdir()), 5, lambda: f"{list(passable.iterdir())} are still there")


def do(server: Server, fault: str) -> None:
    action: Callable[[], None] = getattr(server, fault)
    action()


def execute(servers: Servers, statement: str) -> None:
    with psycopg.connect(servers.database_url, autocommit=True, connect_timeout=5) as conn:
        conn.execute(statement.encode())


def running_below(folder: Path) -> list[str]:
    """The command lines that name a folder below this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found
