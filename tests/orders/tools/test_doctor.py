"""`orders doctor` at a terminal: a system that is well, one that is broken in parts, and none at all."""

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
import psycopg
import pytest
from psycopg import AsyncConnection

from dev.sandbox.ports import free_port
from dev.sandbox.process import ROOT
from dev.sandbox.servers import Servers
from orders.broker import rabbitmq
from orders.broker.policy_watch import management_of
from orders.database.server_state import ServerState
from orders.tools.doctor import (
    MarkHolder,
    RelayStatus,
    WorkerStatus,
    complaints_of_members,
    complaints_of_server,
    fault_of_members,
)
from orders.tools.running_code import complaint_of
from tests import places, warm
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.orders.work_samples import claim, fail, place
from tests.policies import put_policy

Wrong = dict[str, list[str]]


def ask(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": ":".join(path for path in sys.path if path), "COLUMNS": "200"}
    return warm.run([sys.executable, "-m", "orders.cli", "doctor", *arguments], cwd=folder, env=path | environ)


def examine(folder: Path, **environ: str) -> tuple[int, Wrong]:
    """Ask; return the exit code, and what is wrong with each part that was looked at."""
    done = ask(folder, "--json", **environ)
    assert not done.stderr, done.stderr
    return done.returncode, {each["what"]: each["wrong"] for each in json.loads(done.stdout)}


def said(folder: Path, **environ: str) -> str:
    """Ask; return what is said of PostgreSQL, which has no fault."""
    [report] = json.loads(ask(folder, "--json", **environ).stdout)
    assert report["wrong"] == []
    return str(report["says"])


@pytest.mark.long
async def test_a_system_and_its_parts(start_system: StartSystem, tmp_path: Path) -> None:
    """All is well, also by the `.run/env` of this folder; then what is broken is named, and how it is mended."""
    system = start_system(apis=1)
    run = tmp_path / "shop" / ".run"
    run.mkdir(parents=True)
    (run / "env").write_text("".join(f"{name}={value}\n" for name, value in system.env().items()))
    parts = {"PostgreSQL", "RabbitMQ", "front", "api", "relay", "worker"}

    assert examine(run.parent) == (0, {part: [] for part in parts})
    shown = ask(run.parent)
    assert shown.returncode == 0, shown.stdout
    assert "✗" not in shown.stdout
    assert shown.stdout.count("✓") == len(parts)

    system.process("worker-1").stop()
    system.process("api-1").pause()
    async with rabbitmq.connect(system.amqp_url, "test") as connection:
        await (await connection.channel()).queue_delete("orders.work")
    with psycopg.connect(system.database_url) as conn:
        conn.execute("ALTER TABLE retries RENAME TO gone")
    code, wrong = examine(tmp_path, **system.env())

    assert code == 1
    assert wrong["relay"] == []
    assert all("`alembic upgrade head`" in each for each in wrong["PostgreSQL"])
    assert all("`orders topology`" in each for each in wrong["RabbitMQ"])
    assert all("start it" in each for each in wrong["worker"] + wrong["api"])
    assert [len(wrong[part]) for part in sorted(parts - {"relay"})] == [1, 1, 1, 1, 1]
    assert "✗" in ask(tmp_path, **system.env()).stdout


def test_code_that_changed_after_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that started before the last change of its package or its handler is told to run old code."""
    monkeypatch.chdir(tmp_path)
    newest = max(file.stat().st_mtime for file in (ROOT / "src" / "orders").rglob("*.py"))
    assert complaint_of("orders", None) == []
    assert complaint_of("orders", newest + 1) == []
    assert ["`make up` restarts it" in line for line in complaint_of("orders", newest - 60)] == [True]

    (tmp_path / "shop.py").touch()
    os.utime(tmp_path / "shop.py", (newest + 100, newest + 100))
    assert complaint_of("orders", newest + 1) == []
    assert len(complaint_of("orders", newest + 1, "shop:handle")) == 1


async def test_a_relay_that_may_not_publish(start_system: StartSystem, tmp_path: Path) -> None:
    """A closed route is told as the relay tells it."""
    system = start_system(apis=1, workers=0, with_nginx=False)
    async with rabbitmq.connect(system.amqp_url, "test") as connection:
        await (await connection.channel()).queue_delete("orders.work")
    async with httpx.AsyncClient() as client:
        (await client.post(f"{system.base_url}/order/place")).raise_for_status()

    def told() -> str:
        _, wrong = examine(tmp_path, RELAY_URLS=system.relay_urls[0])
        assert len(wrong["relay"]) == 1
        return wrong["relay"][0]

    assert "order.placed does not take messages" in await eventually(told, 30)


async def test_a_policy_that_takes_messages(
    start_system: StartSystem, servers: Servers, topology: str, tmp_path: Path
) -> None:
    """A policy is named by doctor's own look, or by a worker that has seen it; an unseen one is no fault."""
    assert servers.management_url is not None
    await put_policy(servers, topology, ".*", {"expires": 3_600_000})
    sees = {"ORDERS_MANAGEMENT_URL": servers.management_url}
    no_worker, *policies = examine(tmp_path, AMQP_URL=topology, **sees)[1]["RabbitMQ"]
    assert no_worker.startswith("no worker consumes")
    assert [policy.partition(" is deleted")[0] for policy in policies] == ["queue 'orders.work'", "queue 'orders.dead'"]
    assert len(examine(tmp_path, AMQP_URL=topology)[1]["RabbitMQ"]) == 1
    unseen = examine(tmp_path, AMQP_URL=topology, ORDERS_MANAGEMENT_URL="http://127.0.0.1:9")[1]["RabbitMQ"]
    assert unseen[1].startswith("ORDERS_MANAGEMENT_URL: no answer")

    system = start_system(apis=0, with_nginx=False, settings=sees)
    await put_policy(servers, system.amqp_url, "^orders.dead$", {"max-length": 5}, queue="orders.dead")
    system.process("worker-1").kill()  # the next one looks at once

    def is_told() -> bool:
        faults = examine(tmp_path, WORKER_URLS=system.worker_urls[0])[1]["worker"]
        return any("'orders.dead' has max-length without overflow" in fault for fault in faults)

    await eventually(is_told, 30)


async def test_dead_letters(conn: AsyncConnection, database_url: str, tmp_path: Path) -> None:
    """Dead letters are a fault until an operator has settled them."""
    await fail(conn, await claim(conn, await place(conn, 10)))

    code, wrong = examine(tmp_path, DATABASE_URL=database_url)
    assert code == 1
    [line] = wrong["PostgreSQL"]
    assert line.startswith("10 dead letters: ")
    assert "`orders dead redrive`" in line

    await conn.execute("UPDATE dead_letters SET state = 'discarded', settled_at = now()")
    assert examine(tmp_path, DATABASE_URL=database_url) == (0, {"PostgreSQL": []})


async def test_an_order_that_goes_round(conn: AsyncConnection, database_url: str, tmp_path: Path) -> None:
    """An order that goes from retry to retry for hours is named; one that waits for its first retry is not."""
    [order, first, young] = await claim(conn, await place(conn, 3))
    for claimed, failures, hours in ((order, 7, 3), (first, 1, 3), (young, 7, 0)):
        await conn.execute(
            "UPDATE orders SET worker = 0, failures = %s, placed_at = now() - make_interval(hours => %s)"
            " WHERE order_id = %s",
            [failures, hours, claimed.order.order_id],
        )
        await conn.execute(
            "INSERT INTO retries (order_id, due_at, event_id, body, traceparent)"
            " VALUES (%s, now() + interval '1 minute', gen_random_uuid(), '{}', '')",
            [claimed.order.order_id],
        )

    code, wrong = examine(tmp_path, DATABASE_URL=database_url)

    assert code == 1
    [line] = wrong["PostgreSQL"]
    assert line.startswith(f"1 orders go from retry to retry for more than 1 h, the oldest is {order.order.order_id}")
    assert "7 failures" in line


async def test_no_connection_is_left(conn: AsyncConnection, database_url: str, tmp_path: Path) -> None:
    """A role that has its limit of connections is told as one, and another role still connects."""
    role = f"crowded_{secrets.token_hex(4)}"
    await conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret' CONNECTION LIMIT 1".encode())
    parts = urlsplit(database_url)
    url = parts._replace(netloc=f"{role}:secret@{parts.hostname}:{parts.port}").geturl()
    try:
        async with await AsyncConnection.connect(url):
            code, wrong = examine(tmp_path, DATABASE_URL=url)
    finally:
        await conn.execute(f"DROP ROLE {role}".encode())

    assert code == 1
    [line] = wrong["PostgreSQL"]
    assert "too many connections for role" in line
    assert "count them by application_name" in line


def test_connections_run_out() -> None:
    """More than four fifths of the connections taken is a fault, with both numbers; so is a role at its own limit."""
    state = ServerState(81, 100, "", 0, None, 0, None)

    assert list(complaints_of_server(state._replace(taken=80))) == []
    [line] = complaints_of_server(state)
    assert line.startswith("81 of 100 connections are taken: ")
    [line] = complaints_of_server(state._replace(taken=80, roles_at_limit="orders_api"))
    assert line.startswith("all connections that the role may have are taken: orders_api; ")


async def test_orders_that_nothing_carries(conn: AsyncConnection, database_url: str, tmp_path: Path) -> None:
    """Orders that are late and in nobody's hands are named; one that has ended, or is due a moment ago, is not."""
    late, in_vain, _ = await place(conn, 3)
    await fail(conn, await claim(conn, await place(conn)))
    await conn.execute("UPDATE dead_letters SET state = 'discarded', settled_at = now()")
    await conn.execute("INSERT INTO stragglers (order_id, row_id, due_at) SELECT order_id, 1, now() FROM orders")
    await conn.execute(
        "UPDATE stragglers SET due_at = now() - interval '3 minutes' WHERE order_id IN "
        "(SELECT order_id FROM orders WHERE status = 'failed' OR order_id = %s)",
        [late.order.order_id],
    )
    await conn.execute("UPDATE stragglers SET brought_back = 2 WHERE order_id = %s", [in_vain.order.order_id])

    code, wrong = examine(tmp_path, DATABASE_URL=database_url)

    assert code == 1
    [line] = wrong["PostgreSQL"]
    assert line.startswith("2 orders are late, and no worker has them in hand, such as ")
    assert "brought back 2 times" in line


async def test_a_promotion(conn: AsyncConnection, database_url: str, tmp_path: Path) -> None:
    """A new timeline of the server is told for an hour; it is no fault."""
    await conn.execute("UPDATE sweep SET system_id = 1, timeline = 7, changed_at = now() - interval '50 minutes'")
    assert ", on timeline 7 since " in said(tmp_path, DATABASE_URL=database_url)

    await conn.execute("UPDATE sweep SET changed_at = now() - interval '61 minutes'")
    assert "timeline" not in said(tmp_path, DATABASE_URL=database_url)


def test_no_worker_at_all(topology: str, tmp_path: Path) -> None:
    """A work queue that no worker consumes is a fault, also where no worker has an address."""
    code, wrong = examine(tmp_path, AMQP_URL=topology)

    assert code == 1
    [line] = wrong["RabbitMQ"]
    assert line.startswith("no worker consumes orders.work: start one")


def test_the_handler_is_named() -> None:
    """A worker reports the handler that it runs; one of an earlier version has none to report."""
    status = WorkerStatus("connected", "connected", 2, 1)

    assert status.says() == "2 orders in hand; 1 wait for a retry"
    named = msgspec.structs.replace(status, handler="shop.work:handle")
    assert named.says() == "runs shop.work:handle; 2 orders in hand; 1 wait for a retry"


def test_nobody_is_there(tmp_path: Path) -> None:
    """Each part that does not answer has its line; so has a URL that leads to something else."""
    nowhere = f"127.0.0.1:{free_port()}"
    code, wrong = examine(
        tmp_path,
        DATABASE_URL=f"postgresql://nobody@{nowhere}/none",
        AMQP_URL=f"amqp://{nowhere}",
        BASE_URL=f"http://{nowhere}",
        RELAY_URLS=f"http://{nowhere}, http://{nowhere}",
    )

    assert code == 1
    assert set(wrong) == {"PostgreSQL", "RabbitMQ", "front", "relay"}
    assert "DATABASE_URL" in wrong["PostgreSQL"][0]
    assert "AMQP_URL" in wrong["RabbitMQ"][0]
    assert "nginx" in wrong["front"][0]
    assert "log" in wrong["relay"][0]


@pytest.fixture
def page() -> Iterator[str]:
    """Where a server answers everything with a page that is not ours."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>\xff</html>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_addresses_that_lead_elsewhere(page: str, tmp_path: Path) -> None:
    """What is no address, and what answers but is not ours, spoils only its own line, and no password is shown."""
    everything = {"AMQP_URL": "amqp://orders:secret#1@127.0.0.1", "API_URLS": "http://127.0.0.1:port", "BASE_URL": page}
    everything |= {"RELAY_URLS": page, "WORKER_URLS": page}
    code, wrong = examine(tmp_path, **everything)

    assert code == 1
    assert "AMQP_URL" in wrong["RabbitMQ"][0]
    assert "secret" not in str(wrong)
    assert "InvalidURL" in wrong["api"][0]
    assert "BASE_URL" in wrong["front"][0]
    assert ["RELAY_URLS" in wrong["relay"][0], "WORKER_URLS" in wrong["worker"][0]] == [True, True]


def test_not_migrated(servers: Servers, tmp_path: Path) -> None:
    """A database without the tables is told apart from none."""
    with places.database(servers) as url:
        _, wrong = examine(tmp_path, DATABASE_URL=url)

    assert "`alembic upgrade head`" in wrong["PostgreSQL"][0]


def test_nothing_to_look_at(tmp_path: Path) -> None:
    """Without an address it says what to set, and a wrong one is named; both end with 2."""
    nothing, wrong = ask(tmp_path), ask(tmp_path, DATABASE_URL="mysql://x")

    assert (nothing.returncode, wrong.returncode) == (2, 2)
    assert "`make up`" in nothing.stderr
    assert "DATABASE_URL is wrong" in wrong.stderr


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, []),
        ({"broker": "blocked"}, ["alarm"]),
        ({"broker": "disconnected"}, ["start it"]),
        ({"database": "disconnected"}, ["PostgreSQL"]),
        ({"blocked_keys": 2}, ["`relay blocked`"]),
        ({"oldest_pending_seconds": 11.0}, ["11 s old"]),
        ({"closed_routes": {"orders/order.placed": "its queue is full"}}, ["its queue is full"]),
        (
            {"mark_behind_rows": 7000, "mark_held_by": MarkHolder(pid=71, name="shop", prepared=False, since=0.0)},
            ["'shop' (pid 71), open since 1970-01-01T00:00:00Z, holds the low-water mark 7000 rows back"],
        ),
        (
            {"mark_behind_rows": 7000, "mark_held_by": MarkHolder(pid=0, name="it's", prepared=True, since=None)},
            ["`ROLLBACK PREPARED 'it''s'`"],
        ),
    ],
)
def test_what_a_relay_tells(told: dict[str, object], said: list[str]) -> None:
    """Each trouble of a relay is a line of its own."""
    well = {
        "broker": "connected", "database": "connected", "closed_routes": {}, "blocked_keys": 0, "backlog": 0,
        "oldest_pending_seconds": 0.0,
    }  # fmt: skip
    complaints = list(RelayStatus(**well | told).complaints())  # type: ignore[arg-type]

    assert len(complaints) == len(said)
    assert all(word in line for word, line in zip(said, complaints, strict=True))


# In the form of the management API: a queue that was declared with one node, before two more joined it.
ALONE = {
    "name": "orders.work", "vhost": "/", "type": "quorum", "durable": True, "leader": "rabbit@a",
    "members": ["rabbit@a"], "online": ["rabbit@a"], "node": "rabbit@a", "messages": 0,
}  # fmt: skip
NODES = ["rabbit@a", "rabbit@b", "rabbit@c"]


def test_queue_with_one_member() -> None:
    """
    A queue that keeps one member though nodes have joined is named, with the command by which it grows.
    """
    complaint = fault_of_members(ALONE, NODES)

    assert "queue orders.work has 1 of 3 members (rabbit@a), though 3 nodes run" in complaint
    assert "rabbitmq-queues grow" in complaint
    assert not fault_of_members(ALONE, NODES[:1])
    assert not fault_of_members(ALONE | {"members": NODES}, [*NODES, "rabbit@d", "rabbit@e"])
    assert not fault_of_members({"name": "orders.work", "type": "classic"}, NODES)


async def test_queues_of_a_single_node(servers: Servers, topology: str) -> None:
    """
    On the real broker, which is one node, each queue has the one member that there can be.
    """
    assert servers.management_url is not None
    management = management_of(servers.management_url, topology)

    [node] = await management.running_nodes()
    assert (await management.queue("orders.work"))["members"] == [node]
    assert await complaints_of_members(management) == []
