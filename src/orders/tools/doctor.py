"""`orders doctor`: check every part of the system, and say what is wrong and how to fix it.

It only reads, checks all parts at the same time, and gives each of them some seconds to answer. Of the orders it sees
those that wait for an operator; `orders reconcile` compares all of them.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click
import httpx
import msgspec
import psycopg
import uvloop
from aiormq.exceptions import AMQPError
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from orders.broker import rabbitmq, topology
from orders.broker.management import LimitFault, Management, ManagementUnavailable, limit_faults
from orders.broker.policy_watch import management_of
from orders.database import (
    api_keys_table,
    attempt_log,
    dead_letters_table,
    idempotency_keys_table,
    orders_table,
    outbox_table,
    postgres,
    retries_table,
    server_state,
    stragglers_table,
)
from orders.database.server_state import ServerState
from orders.model.error_text import first_line
from orders.model.errors import OrdersError, StartupError
from orders.runtime.settings import DoctorSettings
from orders.tools import running_code
from orders.tools.command_line import fail
from orders.tools.run_env import environment_for, read_run_env

PATIENCE_SECONDS = 5.0
OLD_SECONDS = 10.0  # an event that stays unsent for longer is a fault
MOST_MEMBERS = 3  # of a quorum queue: RabbitMQ declares no more by itself
MOST_DEAD = 1000  # dead letters are counted up to here
ROUNDS = 3  # failures after which an order goes round, if it was placed LONG_SECONDS ago
LONG_SECONDS = 3600.0
WAITING_SECONDS = 2.0  # a commit that waits for its standby for longer is a fault
MOST_TAKEN = 0.8  # of max_connections
OVERDUE_SECONDS = 120.0  # after which the workers should have brought an order back
MEANWHILE = "the service still takes orders, and nothing is lost"

COLUMNS = (
    orders_table.COLUMNS_ARE_THERE, idempotency_keys_table.COLUMNS_ARE_THERE, api_keys_table.COLUMNS_ARE_THERE,
    outbox_table.COLUMNS_ARE_THERE, retries_table.COLUMNS_ARE_THERE, dead_letters_table.COLUMNS_ARE_THERE,
    stragglers_table.COLUMNS_ARE_THERE,
    attempt_log.COLUMNS_ARE_THERE,
)  # fmt: skip


UNREACHABLE = (httpx.HTTPError, httpx.InvalidURL)
UNINTELLIGIBLE = (msgspec.MsgspecError, UnicodeDecodeError)


class PartReport(msgspec.Struct, frozen=True):
    """One part of the system: its kind, its address, what it reports, and each fault with the way to fix it."""

    what: str
    where: str
    says: str = ""
    wrong: list[str] = []  # empty: no fault


class ApiHealth(msgspec.Struct, frozen=True):
    """What we read of an api's `/health`."""

    database: str


class MarkHolder(msgspec.Struct, frozen=True):
    """Who holds a relay's low-water mark: a backend, or with pid 0 a prepared transaction."""

    pid: int
    name: str
    prepared: bool
    since: float | None  # seconds since the epoch

    def complaint(self, behind_rows: int) -> str:
        """Say who it is, and how to end it."""
        since = (
            "" if self.since is None else f", open since {datetime.fromtimestamp(self.since, UTC):%Y-%m-%dT%H:%M:%SZ},"
        )
        if self.prepared:
            name = self.name.replace("'", "''")
            who, end = (
                f"the prepared transaction {self.name!r}",
                f"ROLLBACK PREPARED '{name}'` or `COMMIT PREPARED '{name}'",
            )
        else:
            who, end = f"a transaction of {self.name!r} (pid {self.pid})", f"SELECT pg_terminate_backend({self.pid})"
        return f"{who}{since} holds the low-water mark {behind_rows} rows back, and with it old partitions: `{end}`"


class RelayStatus(msgspec.Struct, frozen=True):
    """What we read of a relay's `/status`."""

    broker: str
    database: str
    closed_routes: dict[str, str]
    blocked_keys: int
    backlog: int
    oldest_pending_seconds: float
    mark_behind_rows: int = 0  # a relay of an earlier version does not say
    mark_held_by: MarkHolder | None = None
    policy_faults: list[LimitFault] = []  # a relay of an earlier version shows none
    uptime_seconds: float = 0.0

    def says(self) -> str:
        """Summarise a healthy state in one line."""
        return f"{self.backlog} unsent events, the oldest {self.oldest_pending_seconds:.1f} s old"

    def complaints(self) -> Iterator[str]:
        """Yield each fault, with the way to fix it."""
        if self.broker == "blocked":
            yield f"RabbitMQ has a memory or disk alarm: free memory or disk space; {MEANWHILE}"
        elif self.broker != "connected":
            yield f"no connection to RabbitMQ: start it; {MEANWHILE}"
        if self.database != "connected":
            yield "no connection to PostgreSQL: start it"
        for fault in self.policy_faults:
            yield fault.text
        for route, reason in self.closed_routes.items():
            yield f"{route} does not take messages: {reason}"
        if self.blocked_keys:
            yield f"{self.blocked_keys} keys are blocked: see `relay blocked`, then `relay retry` or `relay skip`"
        if self.oldest_pending_seconds > OLD_SECONDS:
            yield f"the oldest unsent event is {self.oldest_pending_seconds:.0f} s old"
        if self.mark_held_by is not None:
            yield self.mark_held_by.complaint(self.mark_behind_rows)


class WorkerStatus(msgspec.Struct, frozen=True):
    """What we read of a worker's `/status`."""

    broker: str
    database: str
    in_hand: int
    waiting_for_retry: int
    policy_faults: list[LimitFault] = []
    handler: str = ""  # a worker of an earlier version does not name it

    def says(self) -> str:
        """Summarise a healthy state in one line."""
        runs = f"runs {self.handler}; " if self.handler else ""
        return f"{runs}{self.in_hand} orders in hand; {self.waiting_for_retry} wait for a retry"

    def complaints(self) -> Iterator[str]:
        """Yield each fault, with the way to fix it."""
        if self.broker != "connected":
            yield f"no connection to RabbitMQ, or its queue is missing: start it, or {topology.MEND}"
        for fault in self.policy_faults:
            yield fault.text
        if self.database != "connected":
            yield "no connection to PostgreSQL: start it"


async def examine(settings: DoctorSettings, *, with_code: bool = False) -> list[PartReport]:
    """Check every part that the settings name, all at the same time.

    `with_code`: the processes run the code in this folder, so compare the two.
    """
    looks: list[Awaitable[PartReport]] = []
    if settings.database_url:
        looks.append(look_at_database(settings.database_url))
    if settings.amqp_url:
        looks.append(look_at_broker(settings.amqp_url, settings.orders_management_url))
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS, trust_env=False) as client:
        if settings.base_url:
            looks.append(look_at_front(client, settings.base_url.rstrip("/")))
        looks += [look_at_api(client, url, with_code=with_code) for url in split(settings.api_urls)]
        looks += [
            look_at_status(client, "relay", RelayStatus, url, with_code=with_code) for url in split(settings.relay_urls)
        ]
        looks += [
            look_at_status(client, "worker", WorkerStatus, url, with_code=with_code)
            for url in split(settings.worker_urls)
        ]
        return await asyncio.gather(*looks)


def split(urls: str) -> list[str]:
    """Return the URLs between the commas."""
    return [url.strip().rstrip("/") for url in urls.split(",") if url.strip()]


async def look_at_database(url: str) -> PartReport:
    """Check that PostgreSQL takes writes, has every column that the service uses, and no order needs an operator."""
    conn: psycopg.AsyncConnection | None = None
    try:
        conn = await postgres.connect(url, "orders-doctor")
        where = f"{conn.info.host}:{conn.info.port}/{conn.info.dbname}"
        await postgres.require(conn, *COLUMNS)
        version = f"version {conn.info.parameter_status('server_version')}, migrated"
        with postgres.deadline(conn, PATIENCE_SECONDS):
            state = await server_state.read(conn)
            changed = await stragglers_table.changed(conn, LONG_SECONDS)
            wrong = [*complaints_of_server(state), *[line async for line in complaints_of_orders(conn)]]
        version += f", {state.taken} of {state.max_connections} connections taken"
        if changed is not None:
            version += (
                f", on timeline {changed.timeline} since {changed.at}: a standby was promoted or a backup restored"
            )
        return PartReport("PostgreSQL", where, version, wrong)
    except StartupError as error:
        return PartReport("PostgreSQL", "DATABASE_URL", wrong=[str(error)])
    except psycopg.Error as error:
        reason = first_line(error)
        remedy = "start it, or correct DATABASE_URL"
        if "too many" in reason or "connection slots" in reason:  # psycopg has no SQLSTATE of a refused connection
            remedy = "count them by application_name in pg_stat_activity, as another role or a superuser, and end some"
        return PartReport("PostgreSQL", "DATABASE_URL", wrong=[f"no connection ({reason}): {remedy}"])
    finally:
        await postgres.close(conn)


def complaints_of_server(state: ServerState) -> Iterator[str]:
    """Yield why commits do not return, and whether connections run out, each with the way to fix it."""
    if state.waiting_since is not None and state.waiting_seconds > WAITING_SECONDS:
        yield (
            f"commits wait for a synchronous standby: {state.standbys}; {state.waiting_commits} wait, the oldest since "
            f"{state.waiting_since:%Y-%m-%dT%H:%M:%SZ}: start the standby, or take it out of synchronous_standby_names "
            "and reload; placements get 503 meanwhile, and nothing is lost"
        )
    if state.taken > MOST_TAKEN * state.max_connections:
        yield (
            f"{state.taken} of {state.max_connections} connections are taken: count them by application_name in "
            "pg_stat_activity, end those that nobody needs, or raise max_connections"
        )
    if state.roles_at_limit:
        yield (
            f"all connections that the role may have are taken: {state.roles_at_limit}; count them by application_name "
            "in pg_stat_activity, or raise its CONNECTION LIMIT"
        )


async def complaints_of_orders(conn: psycopg.AsyncConnection) -> AsyncIterator[str]:
    """Yield what an operator has to settle: dead letters, orders that go round, and orders that nothing carries."""
    if dead := await dead_letters_table.count_dead(conn, MOST_DEAD):
        many = f"{dead} dead letters" if dead < MOST_DEAD else f"{dead} dead letters or more"
        yield f"{many}: see `orders dead list`, then `orders dead redrive` or `orders dead discard`"
    if order := await retries_table.going_round(conn, ROUNDS, LONG_SECONDS):
        yield (
            f"{order.orders} orders go from retry to retry for more than {LONG_SECONDS / 3600:.0f} h, the oldest is "
            f"{order.order_id}, placed {order.placed_at:%Y-%m-%dT%H:%M:%SZ}: {order.failures} failures, the next "
            f"attempt at {order.due_at:%Y-%m-%dT%H:%M:%SZ}: see the workers' logs for the reason"
        )
    left = await stragglers_table.left(conn, OVERDUE_SECONDS)
    if left.orders:
        yield (
            f"{left.orders} orders are late, and no worker has them in hand, such as {left.first}, brought back "
            f"{left.brought_back} times: the workers send them again once no message waits; see their logs, and "
            "`orders reconcile --broker`"
        )


async def look_at_broker(urls: str, management_urls: str = "") -> PartReport:
    """Check that RabbitMQ answers, has the queues, a worker consumes them, and no policy takes their messages."""
    try:
        async with rabbitmq.connect(urls, "orders-doctor") as connection, asyncio.timeout(PATIENCE_SECONDS):
            await topology.verify(connection)
            channel = await connection.channel()
            queues = {queue: await channel.queue_declare(queue, passive=True) for queue in topology.QUEUES}
        where = f"{connection.url.host}:{connection.url.port}"
        ready = ", ".join(f"{declared.message_count} ready in {queue}" for queue, declared in queues.items())
        no_worker = f"no worker consumes {topology.WORK_QUEUE}: start one, and see its log; {MEANWHILE}"
        wrong = [] if queues[topology.WORK_QUEUE].consumer_count else [no_worker]
        if management_urls:
            management = management_of(management_urls, urls)
            wrong += await complaints_of_policies(management)
            wrong += await complaints_of_members(management)
        return PartReport("RabbitMQ", where, ready, wrong)
    except StartupError as error:
        return PartReport("RabbitMQ", "AMQP_URL", wrong=[str(error)])
    except (OrdersError, AMQPError, OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        return PartReport("RabbitMQ", "AMQP_URL", wrong=[f"no connection ({reason}): start it, or correct AMQP_URL"])


async def complaints_of_policies(management: Management) -> list[str]:
    """Return which policies lose messages of the worker's queues, or that they cannot be seen."""
    try:
        return [fault.text for fault in await limit_faults(management, [topology.WORK_QUEUE])]
    except ManagementUnavailable as error:
        return [str(error)]


async def complaints_of_members(management: Management) -> list[str]:
    """Return which queues have fewer members than the cluster has nodes; a user who may not see the nodes gets none."""
    try:
        nodes = await management.running_nodes()
        return [
            complaint
            for queue in topology.QUEUES
            if (complaint := fault_of_members(await management.queue(queue), nodes))
        ]
    except ManagementUnavailable:
        return []


def fault_of_members(queue: Mapping[str, Any], nodes: Collection[str]) -> str:
    """Return the fault of a queue that lives on fewer running nodes than it could, "" if there is none.

    `queue` is a quorum queue as the management interface returns it. Beyond MOST_MEMBERS more members help nobody.
    """
    members = list(queue.get("members") or [])
    wanted = min(len(nodes), MOST_MEMBERS)
    if not members or len(members) >= wanted:
        return ""
    return (
        f"queue {queue.get('name')} has {len(members)} of {wanted} members ({', '.join(members)}), though {len(nodes)} "
        "nodes run: a queue keeps those it was declared with; let it grow with `rabbitmq-queues grow NODE all`"
    )


async def look_at_front(client: httpx.AsyncClient, url: str) -> PartReport:
    """Check that a request passes nginx, reaches an api, and the api reaches the database."""
    try:
        answer = await client.get(f"{url}/health")
        health = msgspec.json.decode(answer.content, type=ApiHealth) if answer.status_code == 200 else None
    except UNREACHABLE as error:
        return PartReport("front", url, wrong=[f"no answer ({type(error).__name__}): start nginx, or correct BASE_URL"])
    except UNINTELLIGIBLE:
        return PartReport("front", url, wrong=["another program answers there: correct BASE_URL"])
    if health is None:
        return PartReport("front", url, wrong=[f"it answers {answer.status_code}: no api behind it answers"])
    return PartReport("front", url, wrong=[] if health.database == "healthy" else ["its api has no database"])


async def look_at_api(client: httpx.AsyncClient, url: str, *, with_code: bool = False) -> PartReport:
    """Check that an api is ready."""
    try:
        ready = await client.get(f"{url}/health/ready")
        wrong = [] if ready.is_success else ["it is not ready: the database does not answer it"]
        if with_code:
            wrong += running_code.complaint_of("orders", await running_code.started_at(client, url))
    except UNREACHABLE as error:
        return PartReport("api", url, wrong=[silence(error)])
    return PartReport("api", url, wrong=wrong)


async def look_at_status(
    client: httpx.AsyncClient, what: str, type_: type[RelayStatus | WorkerStatus], url: str, *, with_code: bool = False
) -> PartReport:
    """Check a relay or a worker by its `/status`."""
    try:
        answer = await client.get(f"{url}/status")
        status = msgspec.json.decode(answer.content, type=type_)
        wrong = list(status.complaints())
        if with_code and isinstance(status, RelayStatus):
            wrong += running_code.complaint_of("relay", time.time() - status.uptime_seconds)
        elif with_code and isinstance(status, WorkerStatus):
            started = await running_code.started_at(client, url)
            wrong += running_code.complaint_of("orders", started, status.handler)
    except UNREACHABLE as error:
        return PartReport(what, url, wrong=[silence(error)])
    except UNINTELLIGIBLE:
        return PartReport(what, url, wrong=[f"another program answers there, no {what}: correct {what.upper()}_URLS"])
    return PartReport(what, url, status.says(), wrong)


def silence(error: Exception) -> str:
    """Describe a process that does not answer, and the way to fix it."""
    return f"no answer ({type(error).__name__}): start it, and see its log"


def show(reports: list[PartReport], console: Console) -> None:
    """Print a row for each part: its faults, or what it reports."""
    table = Table("", "what", Column("where", overflow="fold"), Column("says", overflow="fold"), box=None)
    for report in reports:
        mark = "[red]✗[/]" if report.wrong else "[green]✓[/]"
        said = [f"[red]{escape(line)}[/]" for line in report.wrong] or [escape(report.says)]
        table.add_row(mark, report.what, escape(report.where), "\n".join(said))
    console.print(table)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(*, as_json: bool) -> None:
    """Check every part of the system, and say how to fix faults.

    Checks what DATABASE_URL, AMQP_URL, ORDERS_MANAGEMENT_URL, BASE_URL, API_URLS, RELAY_URLS and WORKER_URLS name; the
    last three may have several addresses, separated by commas. If none of them is set, it reads .run/env, which `make
    up` writes in this folder. It changes nothing.

    Exit code 0: no fault. 1: a fault. 2: no address is known.
    """
    environ = environment_for(DoctorSettings)
    settings = DoctorSettings.read_or_exit("orders doctor", environ)
    reports = uvloop.run(examine(settings, with_code=environ == read_run_env()))
    if not reports:
        hint = "set DATABASE_URL, AMQP_URL and BASE_URL, or start one here with `make up`"
        fail("orders doctor", f"where is the system? {hint}", 2)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(reports)).decode())
    else:
        show(reports, Console())
    sys.exit(1 if any(report.wrong for report in reports) else 0)
