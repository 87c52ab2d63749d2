"""Take compose.yml its whole way: up, an order to done, a kill of each of our processes under load, down.

`python -m dev.sandbox.compose_check`; exits 0 only if nothing that was accepted is lost, and nothing is left behind.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx

from dev.sandbox.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "orders-check"
CLIENTS = 8
LOAD_SECONDS_AROUND_A_KILL = 3.0
SETTLE_SECONDS = 60.0

ORDER = {"customer_id": "compose", "currency": "EUR", "lines": [{"sku": "A", "quantity": 2, "unit_price_minor": 150}]}


class CheckError(Exception):
    """The system in containers does not do what it promises."""


class Compose:
    """`docker compose` on a project of its own, beside whatever else runs."""

    def __init__(self) -> None:
        self.port = free_port()
        self._environ = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "ORDERS_HTTP_PORT": str(self.port),
            "ORDERS_CONSOLE_PORT": str(free_port()),
            "WORK_MIN_SECONDS": "0.01",
            "WORK_MAX_SECONDS": "0.2",
        }
        self.url = f"http://127.0.0.1:{self.port}"

    def run(self, *words: str) -> str:
        """Run a command of compose; return what it printed."""
        return self._run("docker", "compose", *words)

    def docker(self, *words: str) -> str:
        """Run a command of the engine; return what it printed."""
        return self._run("docker", *words)

    def sql(self, query: str) -> int:
        """Ask the database for one number; the query goes through standard input, for it may be long."""
        words = (
            "docker",
            "compose",
            "exec",
            "-T",
            "postgres",
            "psql",
            "-U",
            "orders",
            "-d",
            "orders",
            "-At",
            "-f",
            "-",
        )
        return int(self._run(*words, given=query).strip())

    def _run(self, *words: str, given: str | None = None) -> str:
        done = subprocess.run(
            words, cwd=ROOT, env=self._environ, input=given, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CheckError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout


def say(text: str) -> None:
    """Print a line at once, with the time since the start."""
    print(f"compose: [{time.monotonic() - STARTED:5.1f} s] {text}", flush=True)


STARTED = time.monotonic()


async def place_until(stop: asyncio.Event, url: str, accepted: set[str]) -> None:
    """Place order after order, each until it is accepted, and note what was promised."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        while not stop.is_set():
            key = str(uuid.uuid4())
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.post("/orders", json=ORDER, headers={"Idempotency-Key": key})
                    if answer.status_code == 201:
                        accepted.add(answer.json()["order_id"])
                        break
                    if answer.status_code < 500:
                        raise CheckError(f"an order was refused: {answer.status_code} {answer.text}")
                await asyncio.sleep(0.1)


async def kill_each_under_load(compose: Compose) -> set[str]:
    """SIGKILL one api, the relay and the worker, each in the middle of a load; return the accepted orders."""
    accepted: set[str] = set()
    for service in ("api", "relay", "worker"):
        container = compose.run("ps", "-q", service).split()[0]
        stop = asyncio.Event()
        clients = [asyncio.create_task(place_until(stop, compose.url, accepted), name="client") for _ in range(CLIENTS)]
        await asyncio.sleep(LOAD_SECONDS_AROUND_A_KILL)
        before = len(accepted)
        await asyncio.to_thread(compose.docker, "kill", "-s", "KILL", container)
        await asyncio.sleep(LOAD_SECONDS_AROUND_A_KILL)
        after = len(accepted)
        await asyncio.to_thread(compose.run, "up", "-d", "--wait", "--no-recreate")
        stop.set()
        await asyncio.gather(*clients)
        say(f"killed {service}: {before} orders accepted before, {after - before} while it was away")
        if not 0 < before < after:
            raise CheckError(f"no order was accepted around the kill of {service}: it proves nothing")
    return accepted


async def settled(compose: Compose, accepted: set[str]) -> None:
    """Wait until every order is done, then compare with what was promised."""
    end = time.monotonic() + SETTLE_SECONDS
    open_orders = "SELECT count(*) FROM orders WHERE status <> 'done'"
    while await asyncio.to_thread(compose.sql, open_orders):
        if time.monotonic() > end:
            raise CheckError(f"{compose.sql(open_orders)} orders are not done after {SETTLE_SECONDS:.0f} s")
        await asyncio.sleep(0.5)
    ids = ",".join(f"('{order_id}'::uuid)" for order_id in accepted)
    lost = compose.sql(f"SELECT count(*) FROM (VALUES {ids}) a (id) WHERE id NOT IN (SELECT order_id FROM orders)")  # noqa: S608  # ids of our own answers
    orders = compose.sql("SELECT count(*) FROM orders")
    done_events = compose.sql("SELECT count(*) FROM outbox WHERE routing_key = 'order.done'")
    say(f"{len(accepted)} accepted, {lost} lost; {orders} orders, {done_events} done events")
    if lost or done_events != orders:
        raise CheckError("an accepted order is lost, or one was finished twice")


def check_containers(compose: Compose) -> None:
    """Everything of ours runs as non-root, and nothing is published beyond 127.0.0.1."""
    for service in ("api", "relay", "worker", "nginx"):
        for container in compose.run("ps", "-q", service).split():
            if compose.docker("exec", container, "id", "-u").strip() == "0":
                raise CheckError(f"{service} runs as root")
    for line in compose.run("ps", "--format", "json").splitlines():
        for port in json.loads(line).get("Publishers") or []:
            if port["PublishedPort"] and port["URL"] != "127.0.0.1":
                raise CheckError(f"{json.loads(line)['Name']} listens on {port['URL']}:{port['PublishedPort']}")


SUPERUSERS = """
    SELECT count(*) FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
    WHERE r.rolsuper AND a.application_name NOT IN ('', 'psql') AND a.backend_type = 'client backend'
"""
DROP_A_TABLE = """
import os, psycopg
assert "AMQP_URL" not in os.environ
try:
    psycopg.connect(os.environ["DATABASE_URL"]).execute("DROP TABLE orders")
except psycopg.errors.InsufficientPrivilege:
    print("refused")
"""
PUBLISH = """
import aiormq, asyncio, os
from urllib.parse import urlsplit
parts = urlsplit(os.environ["DATABASE_URL"])
try:
    asyncio.run(aiormq.connect(f"amqp://{parts.username}:{parts.password}@rabbitmq:5672/orders"))
except aiormq.exceptions.AMQPConnectionError:
    print("refused")
"""


def check_roles(compose: Compose) -> None:
    """No process is a superuser or an administrator; with the api's credentials nobody drops a table or publishes."""
    if others := compose.sql(SUPERUSERS):
        raise CheckError(f"{others} sessions of processes are a superuser's")
    users = compose.run("exec", "-T", "rabbitmq", "rabbitmqctl", "-q", "list_connections", "user").split()
    if not {"orders_relay", "orders_worker"} <= set(users) or "orders" in users:
        raise CheckError(f"connected to RabbitMQ are {sorted(set(users))}")
    for what in (DROP_A_TABLE, PUBLISH):
        if compose.run("exec", "-T", "api", "python", "-c", what).strip() != "refused":
            raise CheckError(f"the api may do this:\n{what}")
    compose.run("run", "--rm", "-T", "operator", "orders", "dead", "list")


def check_one_order(compose: Compose) -> None:
    """An order placed as the tutorial's clients do becomes done."""
    order_id = httpx.post(f"{compose.url}/order/place", timeout=5).raise_for_status().json()["order_id"]
    end = time.monotonic() + SETTLE_SECONDS
    while httpx.get(f"{compose.url}/order/get/{order_id}").json()["status"] != "done":
        if time.monotonic() > end:
            raise CheckError(f"order {order_id} is not done")
        time.sleep(0.1)


def check_nothing_is_left(compose: Compose) -> None:
    """`down -v` leaves neither containers nor volumes."""
    ours = ("--filter", f"label=com.docker.compose.project={PROJECT}")
    left = compose.docker("ps", "-aq", *ours) + compose.docker("volume", "ls", "-q", *ours)
    if left.strip():
        raise CheckError(f"left behind: {left.split()}")


def check(compose: Compose) -> None:
    """Go the whole way; whatever happens, take everything down."""
    try:
        compose.run("up", "--build", "--wait")
        say(f"up at {compose.url}")
        check_containers(compose)
        check_one_order(compose)
        say("an order is done")
        check_roles(compose)
        say("no process may do what is not its work")
        compose.run("up", "-d", "--wait", "--no-recreate", "--scale", "api=5")
        say("five apis")
        asyncio.run(settled(compose, asyncio.run(kill_each_under_load(compose))))
    except CheckError:
        print(compose.run("logs", "--tail", "20"), file=sys.stderr)
        raise
    finally:
        compose.run("down", "-v", "--timeout", "30")
    check_nothing_is_left(compose)
    say("down, and nothing is left")


def main() -> None:
    """Run the check."""
    subprocess.run(["sh", "deploy/make-env"], cwd=ROOT, check=True)
    try:
        check(Compose())
    except CheckError as error:
        sys.exit(f"compose: {error}")


if __name__ == "__main__":
    main()
