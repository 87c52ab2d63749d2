"""What tests of the relay stand on: a writer of outbox rows, a broker to declare and read on, relays as processes."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, LiteralString, TypeVar, cast

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage
from psycopg import AsyncConnection

from dev.sandbox.ports import free_port
from tests import warm
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]

APPEND: LiteralString = """
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING id
"""

Conn = AsyncConnection[Any]
T = TypeVar("T")


async def becomes(expected: T, ask: Callable[[], Awaitable[T]], within: float = 10.0) -> None:
    """Ask until the answer is the expected one."""
    answers: list[T] = []

    async def is_so() -> None:
        answers[:] = [await ask()]
        assert answers == [expected]

    await eventually(cast(Callable[[], object], lambda: _done(is_so())), within)


async def _done(fact: Awaitable[None]) -> bool:
    await fact
    return True


async def append(
    conn: Conn,
    key: str = "key",
    body: bytes = b"{}",
    *,
    exchange: str = "orders",
    routing_key: str = "order.placed",
    required: bool = True,
    content_type: str = "application/json",
    headers: str = "{}",
    event_id: uuid.UUID | None = None,
) -> int:
    """Write one outbox row as a service does, and return its id."""
    values = (event_id or uuid.uuid4(), key, exchange, routing_key, required, content_type, headers, body)
    row = await (await conn.execute(APPEND, values)).fetchone()
    assert row is not None
    return int(row[0])


async def append_many(conn: Conn, rows: int, keys: int, body: bytes = b"", routing_key: str = "order.placed") -> None:
    """Write rows whose bodies count 1, 2, 3 .. within each key, after the given prefix."""
    await conn.execute(
        """
        INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
        SELECT gen_random_uuid(), 'key-' || n %% %(keys)s, 'orders', %(routing_key)s, true, 'text/plain', '{}',
               %(body)s || convert_to((n / %(keys)s)::text, 'UTF8')
        FROM generate_series(0, %(rows)s - 1) AS n ORDER BY n
        """,
        {"rows": rows, "keys": keys, "body": body, "routing_key": routing_key},
    )


async def states(conn: Conn) -> dict[str, int]:
    """Return how many rows are in each state."""
    return dict(await (await conn.execute("SELECT state, count(*) FROM outbox GROUP BY state")).fetchall())


async def state_of(conn: Conn, row_id: int) -> str:
    """Return the state of one row."""
    row = await (await conn.execute("SELECT state FROM outbox WHERE id = %s", (row_id,))).fetchone()
    assert row is not None
    return str(row[0])


@contextlib.asynccontextmanager
async def broker(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """A channel of the test's own."""
    async with aiormq.connect(amqp_url) as connection:
        yield await connection.channel(frame_buffer_size=0)


class Recorder:
    """Consumes a queue and remembers what came, in order."""

    def __init__(self) -> None:
        self.messages: list[DeliveredMessage] = []
        self.event_ids: set[str] = set()

    async def take(self, message: DeliveredMessage) -> None:
        self.messages.append(message)
        self.event_ids.add(str(message.header.properties.message_id))
        delivery_tag = message.delivery_tag
        assert delivery_tag is not None
        await message.channel.basic_ack(delivery_tag, wait=False)

    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]

    def numbers(self, key_of: dict[str, str]) -> dict[str, list[int]]:
        """Return the numbers in each key's bodies, in order of their first appearance."""
        arrived: dict[str, list[int]] = {}
        for message in self.messages:
            numbers = arrived.setdefault(key_of[str(message.header.properties.message_id)], [])
            if int(message.body) not in numbers:
                numbers.append(int(message.body))
        return dict(sorted(arrived.items()))

    def firsts(self) -> dict[str, list[str]]:
        """Return the event ids of each key (the `key` header), in order of their first appearance."""
        seen: set[str] = set()
        keys: dict[str, list[str]] = {}
        for message in self.messages:
            properties = message.header.properties
            event_id = str(properties.message_id)
            if event_id not in seen:
                seen.add(event_id)
                keys.setdefault(str((properties.headers or {})["key"]), []).append(event_id)
        return keys


@contextlib.asynccontextmanager
async def recording(amqp_url: str, queue: str = "orders.work") -> AsyncIterator[Recorder]:
    """Record what arrives in the queue."""
    recorder = Recorder()
    async with broker(amqp_url) as channel:
        await channel.basic_qos(prefetch_count=500)
        await channel.basic_consume(queue, recorder.take)
        yield recorder


class RelayProcess:
    """A relay as it is deployed: `python -m relay`, started by a warm parent."""

    def __init__(self, database_url: str, amqp_url: str, folder: Path, **settings: object) -> None:
        self.port = free_port()
        self.log = folder / f"relay-{self.port}.log"
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RELAY_")},
            "DATABASE_URL": database_url,
            "AMQP_URL": amqp_url,
            "RELAY_PORT": str(self.port),
            "RELAY_EXCHANGES": "orders",
            "RELAY_REQUIRED_QUEUES": "orders.work",
            **{f"RELAY_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._process: warm.Child | subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> "RelayProcess":
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "relay", *words]
            self._process = warm.launch(command, cwd=ROOT, env=self._environ, stdout=log, stderr=log)
        return self

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        if self.runs:
            assert self._process is not None
            self._process.send_signal(number)

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM, and the exit code."""
        assert self._process is not None
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        return self._process.wait(seconds)

    def wait(self, seconds: float = 20) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)

    def get(self, path: str) -> tuple[int, bytes]:
        """GET a path of its health server; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=3) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except (OSError, TimeoutError):
            return 0, b""

    def ask(self, path: str = "/status") -> dict[str, Any]:
        """Return what it says as JSON, or nothing while nobody answers."""
        body = self.get(path)[1]
        return dict(json.loads(body)) if body else {}

    async def status(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.ask)

    async def says(self, name: str) -> Any:
        """Return one line of its status."""
        return (await self.status()).get(name)

    async def ready(self, within: float = 20) -> None:
        await becomes(200, lambda: self.code("/health/ready"), within)

    async def code(self, path: str) -> int:
        """Return the status code of a path, 0 while nobody answers."""
        return (await asyncio.to_thread(self.get, path))[0]

    async def metric(self, name: str) -> float:
        _, body = await asyncio.to_thread(self.get, "/metrics")
        for line in body.decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")


def operator(database_url: str, *words: str) -> tuple[int, str, str]:
    """Run `relay WORDS` as an operator does; return exit code, output, errors."""
    done = warm.run([sys.executable, "-m", "relay", *words], env={**os.environ, "DATABASE_URL": database_url})
    return done.returncode, done.stdout, done.stderr


async def keys_by_event(conn: Conn) -> dict[str, str]:
    """Return each event's key."""
    return dict(await (await conn.execute("SELECT event_id::text, key FROM outbox")).fetchall())


async def all_settled(conn: Conn, but: Sequence[str] = ()) -> bool:
    """Say whether every row is settled, or in one of the states that the caller allows."""
    waiting = {"pending", "parked"} - set(but)
    return not waiting & set(await states(conn))
