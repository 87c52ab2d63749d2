"""What a placement and a look at an order cost, in what can be counted; a change that makes it dearer has to say so.

The limits lie a little above what was counted when they were written down. Times are measured by `make bench`.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, LiteralString

import litestar
import msgspec
import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg import AsyncConnection

import orders
from orders.api.live import Live
from orders.api.middleware import with_request_id
from orders.app import create_app
from orders.database import place_orders, postgres
from orders.runtime.settings import ApiSettings
from tests.eventually import eventually
from tests.orders.conftest import NEW
from tests.orders.samples import placement

ASGIApp = Callable[[Any, Any, Any], Any]

ROWS = 64
BODY = msgspec.json.encode(NEW)
EXPLAIN: LiteralString = "EXPLAIN (ANALYZE, WAL, COSTS OFF, TIMING OFF, FORMAT JSON)"


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[AsyncConnection]:
    """A connection as the api's writers have it."""
    conn = await postgres.connect(database_url, "test", **place_orders.PLANNED_ONCE)
    yield conn
    await postgres.close(conn)


@pytest.mark.parametrize("rows", [1, ROWS])
async def test_round_trips(rows: int, writer: AsyncConnection, tmp_path: Path) -> None:
    """
    A batch is one statement in one round trip, however many orders are in it, once the statement is prepared.
    """
    await place_orders.place_orders(writer, [placement() for _ in range(rows)])

    sent, answered = await traced(writer, tmp_path, [placement() for _ in range(rows)])

    assert sent == {"Bind": 1, "Describe": 1, "Execute": 1, "Sync": 1}
    assert answered["ReadyForQuery"] == 1


async def traced(
    conn: AsyncConnection, folder: Path, batch: list[place_orders.Placement]
) -> tuple[Counter[str], Counter[str]]:
    """Place a batch; return the messages of the protocol that went out and came in, by their names."""
    with (folder / "trace").open("w+") as file:
        conn.pgconn.trace(file.fileno())
        await place_orders.place_orders(conn, batch)
        conn.pgconn.untrace()
        lines = [line.split("\t") for line in (folder / "trace").read_text().splitlines()]
    by_way: dict[str, Counter[str]] = {"F": Counter(), "B": Counter()}
    for fields in lines:
        way = next(number for number, field in enumerate(fields) if field in by_way)
        by_way[fields[way]][fields[way + 2]] += 1
    return by_way["F"], by_way["B"]


async def test_wal(writer: AsyncConnection) -> None:
    """
    An order of one line, with its event and without a key, writes at most 2,000 bytes of WAL.
    """
    written = []
    for _ in range(3):  # a page's first change after a checkpoint is logged whole: the least of three is without it
        batch = [placement(reference="536365") for _ in range(ROWS)]
        cursor = await writer.execute(EXPLAIN + place_orders.PLACE, place_orders.parameters_of(batch))
        row = await cursor.fetchone()
        assert row is not None
        written.append(wal_bytes(row[0][0]["Plan"]) / ROWS)

    assert 500 < min(written) < 2000


def wal_bytes(node: dict[str, Any]) -> int:
    """Return what the tables of a plan have written."""
    own = node["WAL Bytes"] if node["Node Type"] == "ModifyTable" else 0
    return int(own) + sum(wal_bytes(each) for each in node.get("Plans", []))


async def test_calls(database_url: str) -> None:
    """
    A placement takes at most 55 calls of Python functions of ours, of Litestar and of psycopg.
    """
    async with started(database_url) as app:
        await asyncio.gather(*(ask(app) for _ in range(ROWS)))
        with counted() as calls:
            statuses = await asyncio.gather(*(ask(app) for _ in range(ROWS)))

    assert set(statuses) == {201}
    assert sum(calls.values()) / ROWS < 55, calls.most_common(30)


async def test_calls_of_a_line(database_url: str) -> None:
    """
    A line of a batch takes at most 32 such calls, and the 100 lines in hand are one statement.
    """
    body = (BODY + b"\n") * 100
    async with started(database_url) as app:
        await ask(app, "/orders/batch", b"application/x-ndjson", body)
        before = statements("write")
        with counted() as calls:
            status = await ask(app, "/orders/batch", b"application/x-ndjson", body)
        run = statements("write") - before

    assert (status, run) == (200, 1)
    assert sum(calls.values()) / 100 < 32, calls.most_common(30)


async def test_calls_of_a_look(database_url: str, conn: AsyncConnection) -> None:
    """
    A look at an order takes at most 36 such calls, and looks that come together are one statement.
    """
    async with started(database_url) as app:
        await asyncio.gather(*(ask(app) for _ in range(ROWS)))
        rows = await (await conn.execute("SELECT order_id::text FROM orders")).fetchall()
        paths = [f"/orders/{row[0]}" for row in rows]
        await asyncio.gather(*(ask(app, path, method="GET") for path in paths))
        before = statements("read")
        with counted() as calls:
            statuses = await asyncio.gather(*(ask(app, path, method="GET") for path in paths))
        run = statements("read") - before

    assert (set(statuses), run) == ({200}, 1)
    assert sum(calls.values()) / ROWS < 36, calls.most_common(30)


def statements(name: str) -> float:
    """Return how many statements of this name there were."""
    return REGISTRY.get_sample_value("orders_batch_rows_count", {"statement": name}) or 0


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls of Python functions in the block: ours, Litestar's and psycopg's."""
    roots = tuple(str(Path(module.__file__ or "").parent) for module in (orders, litestar, psycopg))
    calls: Counter[str] = Counter()

    def called(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(roots):
            calls[f"{code.co_filename}:{code.co_qualname}"] += 1

    sys.setprofile(called)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@asynccontextmanager
async def started(database_url: str) -> AsyncIterator[ASGIApp]:
    """The api as an application, without a server before it."""
    app = create_app(ApiSettings.read({"DATABASE_URL": database_url}), Live())
    async with app.lifespan():
        services = app.state["services"]
        await eventually(lambda: services.write.connections == 2)
        yield with_request_id(app)


async def ask(
    app: ASGIApp,
    path: str = "/orders",
    media_type: bytes = b"application/json",
    body: bytes = BODY,
    method: str = "POST",
) -> int:
    """Place an order or a batch, or look at an order; return the status of the answer."""
    statuses: list[int] = []
    bodies = iter([body])

    async def receive() -> Any:
        for each in bodies:
            return {"type": "http.request", "body": each, "more_body": False}
        return await asyncio.get_running_loop().create_future()  # the client stays

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope: Any = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", b"shop.example"), (b"content-type", media_type)],
    }  # fmt: skip
    await app(scope, receive, send)
    return statuses[0]
