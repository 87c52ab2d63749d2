"""`make up` and `make down`: a system in the background that heals, scales, and leaves nothing behind."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest

from dev.sandbox.keeper import is_alive
from dev.sandbox.process import ROOT, answers, wait_until
from dev.sandbox.servers import Servers
from tests import places

Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder in the place of `.run`, so that a developer's own `make up` is left in peace."""
    return tmp_path / "run"


@pytest.fixture
def make(run: Path) -> Iterator[Make]:
    """`make(target, NAME=value, ...)` as its recipe runs it; what is still up at the end is ended."""

    def call(target: str, **settings: str) -> subprocess.CompletedProcess[str]:
        # A pipe, as in `make up | cat`: this returns only when nobody holds its other end any more.
        return subprocess.run(
            [sys.executable, "-m", "dev.sandbox.supervisor", target],
            cwd=ROOT,
            env=os.environ | {"SANDBOX_RUN": str(run)} | settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    yield call
    done = call("down")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def urls(servers: Servers, template: str) -> Iterator[dict[str, str]]:
    """SERVERS=env with a database and a vhost of this test's own: no servers to wait for."""
    with places.database(servers, template) as database_url, places.vhost(servers) as amqp_url:
        yield {"SERVERS": "env", "DATABASE_URL": database_url, "AMQP_URL": amqp_url}


def test_up_and_down(make: Make, run: Path, urls: Mapping[str, str]) -> None:
    """
    After `make up` everything is ready where `.run/env` says; after `make down` nothing of it is left but logs.
    """
    done = make("up", **urls)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "servers: env (SERVERS=env)\n"
        "migrating the database, declaring the queues, starting the processes\n"
        "ready: http://127.0.0.1:"
    )
    env = read_env(run)
    assert set(env) == {
        "BASE_URL", "API_URLS", "RELAY_URLS", "WORKER_URLS", "DATABASE_URL", "AMQP_URL", "ADMIN_DATABASE_URL",
        "ADMIN_AMQP_URL",
    }  # fmt: skip
    assert answers(env["BASE_URL"] + "/health")
    counts = {name: len(env[name].split(",")) for name in ("API_URLS", "RELAY_URLS", "WORKER_URLS")}
    assert counts == {"API_URLS": 3, "RELAY_URLS": 1, "WORKER_URLS": 1}
    for url in (*env["API_URLS"].split(","), env["RELAY_URLS"], env["WORKER_URLS"]):
        assert answers(url + "/health/ready")
    pids = read_pids(run)
    assert set(pids) == {"api-1", "api-2", "api-3", "relay-1", "worker-1", "nginx", "supervisor"}

    assert make("down").returncode == 0
    assert not any(is_alive(pid) for pid in pids.values())
    assert {path.suffix for path in run.iterdir()} <= {".log", ""}
    assert not (run / "env").exists()


def test_heals_by_itself(make: Make, run: Path, urls: Mapping[str, str]) -> None:
    """
    Whatever is killed is started again under the same URL, with its new pid in its file.
    """
    make("up", **urls)
    before = read_pids(run)
    url = read_env(run)["RELAY_URLS"]
    for name in ("relay-1", "nginx"):
        os.kill(before[name], signal.SIGKILL)

    wait_until(lambda: read_pids(run)["relay-1"] != before["relay-1"], 5, lambda: "no new pid")
    wait_until(lambda: answers(url + "/health/ready"), 15, lambda: "relay-1 is not ready again")
    wait_until(lambda: answers(read_env(run)["BASE_URL"] + "/health"), 5, lambda: "nginx does not serve")
    after = read_pids(run)
    assert after["api-1"] == before["api-1"]


def test_again(make: Make, run: Path, urls: Mapping[str, str]) -> None:
    """
    `make up` again resumes what was stopped and has exactly the counts it is given; the others run on.
    """
    make("up", **urls)
    before = read_pids(run)
    os.kill(before["api-1"], signal.SIGSTOP)
    done = make("up", **urls, APIS="4", RELAYS="2", WORKERS="0")

    assert (done.returncode, done.stderr) == (0, "")
    after = read_pids(run)
    assert set(after) - {"nginx", "supervisor"} == {"api-1", "api-2", "api-3", "api-4", "relay-1", "relay-2"}
    assert all(before[name] == after[name] for name in ("api-1", "api-2", "relay-1", "nginx"))
    served_by = (run / "nginx" / "nginx.conf").read_text()
    assert all(url.removeprefix("http://") in served_by for url in read_env(run)["API_URLS"].split(","))

    make("up", **urls, APIS="1", RELAYS="0", WORKERS="0", ORDERS_RATE_LIMIT="1")
    health = read_env(run)["BASE_URL"] + "/health"
    wait_until(lambda: 429 in {httpx.get(health).status_code for _ in range(5)}, 5, lambda: "nginx has no rate limit")
    assert read_pids(run)["nginx"] == after["nginx"]


@pytest.fixture
def handler() -> Iterator[Path]:
    """A module beside the project's, with a handler in it."""
    file = ROOT / f"shop_{secrets.token_hex(4)}.py"
    file.write_text("async def handle(order): pass\n")
    yield file
    file.unlink()


def test_the_handler_and_its_code(make: Make, run: Path, urls: Mapping[str, str], handler: Path) -> None:
    """
    `make up` keeps the last handler and says so, says that it changes it, and restarts what runs old code.
    """
    name = f"{handler.stem}:handle"
    make("up", **urls, APIS="1", ORDERS_HANDLER=name)
    before = read_pids(run)

    done = make("up", **urls, APIS="1")
    assert f"handler: {name}, as before" in done.stdout
    assert "restarted" not in done.stdout
    assert httpx.get(f"{read_env(run)['WORKER_URLS']}/status").json()["handler"] == name
    assert read_pids(run) == before

    handler.write_text("async def handle(order): return None\n")
    done = make("up", **urls, APIS="1")
    assert "restarted, since their settings or code have changed: worker-1\n" in done.stdout
    assert {each for each, pid in read_pids(run).items() if pid != before[each]} == {"worker-1"}

    done = make("up", **urls, APIS="1", ORDERS_HANDLER="orders.handlers:wait_a_little")
    assert f"handler: orders.handlers:wait_a_little instead of {name}\n" in done.stdout


def test_refusing_process(make: Make, run: Path, urls: Mapping[str, str]) -> None:
    """
    A process that refuses its start fails the first `make up` with its own last line, and nothing stays up.
    """
    done = make("up", **urls, WORKER_CONCURRENCY="many")

    assert done.returncode == 1
    assert done.stderr.startswith("make up: worker-1: orders.worker: WORKER_CONCURRENCY is wrong")
    assert read_pids(run) == {}


def test_bad_count(make: Make, run: Path, urls: Mapping[str, str]) -> None:
    """
    A count that is no number is refused before anything starts.
    """
    done = make("up", **urls, APIS="some")

    assert done.returncode == 1
    assert "APIS, RELAYS and WORKERS are counts" in done.stderr


def test_other_servers(make: Make, urls: Mapping[str, str]) -> None:
    """
    A running system is not moved to other servers, where its orders are not.
    """
    make("up", **urls)
    done = make("up", SERVERS="local")

    assert done.returncode == 1
    assert "`make down` ends it first" in done.stderr


@pytest.mark.long
def test_killed_servers(make: Make, run: Path) -> None:
    """
    Servers that are killed come back by themselves, and all are ready again.
    With kill -9 of the supervisor everything ends; the next `make up` goes on with the same data and the same URLs.
    """
    make("up", SERVERS="local")
    env, pids = read_env(run), read_pids(run)
    with psycopg.connect(env["ADMIN_DATABASE_URL"], autocommit=True) as conn:
        conn.execute("CREATE TABLE kept ()")
    for name in ("postgres", "rabbitmq"):
        os.kill(pids[name], signal.SIGKILL)
    wait_until(
        lambda: all(read_pids(run)[name] != pids[name] for name in ("postgres", "rabbitmq")), 10, lambda: "no new pid"
    )
    for name in ("RELAY_URLS", "WORKER_URLS"):
        wait_until(partial(answers, env[name] + "/health/ready"), 60, partial(str, f"{name} is not ready"))

    pids = read_pids(run)
    os.kill(pids["supervisor"], signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in pids.values()), 10, lambda: "something lives on")
    done = make("up", SERVERS="local")

    assert (done.returncode, done.stderr) == (0, "")
    assert read_env(run) == env
    with psycopg.connect(env["ADMIN_DATABASE_URL"], autocommit=True) as conn:
        conn.execute("DROP TABLE kept")


def test_down_without_up(make: Make) -> None:
    """
    `make down` with nothing up is no error.
    """
    assert make("down").returncode == 0


def read_env(run: Path) -> dict[str, str]:
    lines = (run / "env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def read_pids(run: Path) -> dict[str, int]:
    return {file.stem: int(file.read_text()) for file in run.glob("*.pid")}
