"""The system that is going to be broken: real processes on private servers, a wire on every edge between them."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from psycopg import AsyncConnection

from dev.chaos.amqp_wire import AmqpWire
from dev.sandbox.choice import Choice
from dev.sandbox.ports import free_port
from dev.sandbox.process import Process, write_atomically
from dev.sandbox.servers import Servers, servers
from dev.sandbox.system import Counts, System
from dev.sandbox.wire import Wire

COUNTS = Counts(apis=3, relays=3, workers=3)
NAMES = tuple(f"{role}-{number}" for role in ("api", "relay", "worker") for number in (1, 2, 3))
PLAIN, TRANSACTIONAL = "dev.chaos.handlers:work", "dev.chaos.handlers:work_in_transaction"
INSIDE = Path(__file__).parent / "inside"

# The seven edges; an api has two of its own (from nginx, to PostgreSQL), relays and workers two each.
EDGES = ("client-nginx", "nginx-api", "api-pg", "relay-pg", "relay-mq", "worker-pg", "mq-worker")


class Stage(msgspec.Struct, frozen=True):
    """All that faults can touch."""

    folder: Path
    servers: Servers
    system: System
    wires: Mapping[str, list[Wire]]  # by edge
    handler: str

    def amqp_wires(self, edge: str) -> list[AmqpWire]:
        """The wires of an edge to RabbitMQ."""
        return [wire for wire in self.wires[edge] if isinstance(wire, AmqpWire)]

    def process(self, name: str) -> Process:
        """One of the ten processes of the system."""
        return self.system.process(name)

    @property
    def base_url(self) -> str:
        """Where clients come in: through their own wire."""
        return f"http://127.0.0.1:{self.wires['client-nginx'][0].port}"

    def arm(self, name: str, what: Mapping[str, object]) -> Path:
        """Have a process do something at a point in its code; the file is gone when it has."""
        order = self.folder / "inside" / f"{name}.json"
        write_atomically(order, msgspec.json.encode(what).decode())
        return order


@contextlib.asynccontextmanager
async def staged(folder: Path, handler: str) -> AsyncIterator[Stage]:
    """Open the servers, the wires and the processes; end them on the way out."""
    for each in ("system", "inside", "servers-logs"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    choice = Choice("local", "chaos stops, kills and pauses its servers")
    opening = contextlib.ExitStack()
    opened = await asyncio.to_thread(opening.enter_context, servers(choice, logs=folder / "servers-logs"))
    try:
        async with contextlib.AsyncExitStack() as stack:
            await _make_tables(opened.database_url)
            stage = await _wire_up(stack, folder, opened, handler)
            try:
                await asyncio.to_thread(stage.system.__enter__)
                yield stage
            finally:
                for wires in stage.wires.values():
                    for wire in wires:
                        wire.mend()
                await asyncio.to_thread(_resume_all, stage)
                await asyncio.to_thread(stage.system.close)
    finally:
        await asyncio.to_thread(opening.close)


async def _make_tables(database_url: str) -> None:
    """What the rig itself keeps in the database: effects of transactional handlers, and rows that retention dropped."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
        await conn.execute(
            "CREATE TABLE chaos_effects (order_id text NOT NULL, version integer NOT NULL, attempt integer NOT NULL, "
            "total_minor bigint NOT NULL, process text NOT NULL, at float8 NOT NULL)"
        )
        await conn.execute("GRANT INSERT ON chaos_effects TO PUBLIC")  # the worker's role comes with the migration
        await conn.execute(
            "CREATE TABLE chaos_archive (id bigint PRIMARY KEY, event_id text NOT NULL, key text NOT NULL, "
            "exchange text NOT NULL, routing_key text NOT NULL, state text NOT NULL)"
        )


async def _wire_up(stack: contextlib.AsyncExitStack, folder: Path, opened: Servers, handler: str) -> Stage:
    ports = {name: free_port() for name in (*NAMES, "nginx")}
    write_atomically(folder / "system" / "ports.json", msgspec.json.encode(ports).decode())
    wires: dict[str, list[Wire]] = {edge: [] for edge in EDGES}
    by_name: dict[tuple[str, str], Wire] = {}

    async def wire(edge: str, name: str, url: str) -> Wire:
        parts = urlsplit(url)
        made = (AmqpWire if edge in {"relay-mq", "mq-worker"} else Wire)("127.0.0.1", int(parts.port or 0))
        made.port = free_port()
        wires[edge].append(await stack.enter_async_context(made))
        by_name[edge, name] = made
        return made

    await wire("client-nginx", "nginx", f"http://127.0.0.1:{ports['nginx']}")
    for name in NAMES:
        role = name.partition("-")[0]
        await wire(f"{role}-pg", name, opened.database_url)
        if role == "api":
            await wire("nginx-api", name, f"http://127.0.0.1:{ports[name]}")
        else:
            await wire("relay-mq" if role == "relay" else "mq-worker", name, opened.amqp_url)

    def own_settings(name: str) -> dict[str, str]:
        role = name.partition("-")[0]
        own = {
            "DATABASE_URL": by_name[f"{role}-pg", name].url(system.urls_of(role)["DATABASE_URL"]),
            "CHAOS_FOLDER": str(folder),
            "CHAOS_PROCESS": name,
            "PYTHONPATH": f"{INSIDE}:{':'.join(each for each in sys.path if each)}",
        }
        if role != "api":
            edge = "relay-mq" if role == "relay" else "mq-worker"
            own["AMQP_URL"] = by_name[edge, name].url(system.urls_of(role)["AMQP_URL"])
        return own

    system = System(
        opened.database_url,
        opened.amqp_url,
        folder / "system",
        COUNTS,
        settings={"ORDERS_HANDLER": handler, "WORK_MAX_ATTEMPTS": "3", "WORK_TIMEOUT": "20"},
        users_url=opened.management_url,
        own_settings=own_settings,
        way_to=lambda name, _port: by_name["nginx-api", name].port,
    )
    return Stage(folder, opened, system, wires, handler)


def _resume_all(stage: Stage) -> None:
    for server in (stage.servers.postgres, stage.servers.rabbitmq):
        server.resume()
    for process in stage.system.processes:
        process.resume()
