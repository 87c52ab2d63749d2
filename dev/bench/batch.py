"""Orders placed a second by batches, beside single placements, and what batches take of an api's memory.

`make bench ONLY=batch`: wrk places orders of two lines through nginx and three apis; relay and worker are stopped. The
sides take turns on one system. A batch counts as its lines if it is answered 200; afterwards the orders in the database
have to be as many as were counted.

Then 20 clients stream batches of 1,000 to one api, and its resident memory is read meanwhile.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import LiteralString

import httpx
import msgspec
import psycopg

from dev.bench.measurement import Bench
from dev.bench.placing import APIS, CONNECTIONS, Contender, drive, ours
from dev.bench.processes import peak_memory_mib
from dev.bench.record import Figures
from dev.sandbox import packages
from dev.sandbox.system import Counts, System
from orders.api.batch import MEDIA_TYPE
from orders.api.fast_path import MAX_BODY_BYTES
from tests import places

LINES = 100
BATCH_CONNECTIONS = 12
CLIENTS = 20
MOST_LINES = 1000
PLACED = b'"status":201'
ORDERS: LiteralString = "SELECT count(*) FROM orders"


def measure(bench: Bench) -> None:
    """Measure, and compare."""
    packages.ensure(["nginx", "wrk"])
    seconds = int(os.environ.get("SECONDS", "8" if bench.full else "3"))
    rounds = int(os.environ.get("ROUNDS", "9" if bench.full else "5"))
    bench.settings(
        seconds=seconds, rounds=rounds, connections=CONNECTIONS, batch_connections=BATCH_CONNECTIONS, apis=APIS
    )
    with tempfile.TemporaryDirectory(prefix="batch-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with ours(bench.servers, folder / "ours") as system:
            single = msgspec.structs.replace(system, name="single")
            batch = msgspec.structs.replace(
                single,
                name=f"batches of {LINES}",
                url=f"{single.url}/batch",
                lines=LINES,
                connections=BATCH_CONNECTIONS,
            )
            for contender in (single, batch):
                drive(contender, 2)  # warm
            bench.compare("orders", {each.name: partial(placed, each, seconds) for each in (single, batch)}, rounds)
            alone = [msgspec.structs.replace(each, connections=1) for each in (single, batch)]
            bench.compare("one connection", {each.name: partial(placed, each, seconds) for each in alone}, rounds)
        _memory(bench, folder)
    bench.ratio("batches / single, orders/s", "orders", "per_second", batch.name, "single", "at least 5")
    bench.ratio("batches / single, one connection, orders/s", "one connection", "per_second", batch.name, "single")
    bench.ratio("batches / single, CPU time of an order", "orders", "cpu_us", batch.name, "single")


def placed(contender: Contender, seconds: int) -> Figures:
    """Drive a contender; fail if it was answered for orders that are not there."""
    before = _orders(contender.database_url)
    figures = drive(contender, seconds)
    rate, stored = figures["per_second"], _orders(contender.database_url) - before
    assert isinstance(rate, float)
    assert stored >= rate * seconds * 0.99, f"{stored} orders were stored, of {rate:.0f}/s"
    return figures


def _orders(url: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute(ORDERS).fetchone()
        assert row is not None
        return int(row[0])


def _memory(bench: Bench, folder: Path) -> None:
    its = bench.servers
    seconds = 20 if bench.full else 8
    (folder / "memory").mkdir()
    with (
        places.database(its) as database,
        places.vhost(its) as vhost,
        System(
            database, vhost, folder / "memory", Counts(apis=1, relays=0, workers=0), settings={}, with_nginx=False
        ) as system,
    ):
        pid = system.process("api-1").pid
        assert pid is not None
        measured: dict[str, Callable[[], Figures]] = {
            "idle": lambda: {"peak_mib": peak_memory_mib(pid)},
            "one client": lambda: asyncio.run(_streams(system.base_url, pid, 1, seconds)),
            f"{CLIENTS} clients": lambda: asyncio.run(_streams(system.base_url, pid, CLIENTS, seconds)),
            f"{CLIENTS} clients, longer": lambda: asyncio.run(_streams(system.base_url, pid, CLIENTS, 3 * seconds)),
        }
        for side, run in measured.items():  # in this order: a peak only grows
            bench.compare("memory of an api", {side: run}, 1)


async def _streams(url: str, pid: int, clients: int, seconds: float) -> Figures:
    """Let clients stream batches of 1,000 lines, a MiB each, every fourth of them read slowly; tell the peak."""
    lines = [
        {"sku": "85123A", "description": "WHITE HANGING HEART T-LIGHT HOLDER", "quantity": 6, "unit_price_minor": 1}
    ]
    order = msgspec.json.encode({"customer_id": "17850", "currency": "GBP", "lines": lines * 9}) + b"\n"
    body = order * MOST_LINES
    assert 0.9 * MAX_BODY_BYTES < len(body) < MAX_BODY_BYTES
    headers = {"Content-Type": MEDIA_TYPE}
    orders = 0

    async def stream(number: int, client: httpx.AsyncClient) -> None:
        nonlocal orders
        while loop.time() < end:
            async with client.stream("POST", "/orders/batch", content=body, headers=headers) as answer:
                assert answer.status_code == 200, answer.status_code
                tail = b""
                async for piece in answer.aiter_raw():
                    if number % 4 == 3:
                        await asyncio.sleep(0.01)
                    orders += (tail + piece).count(PLACED)
                    tail = piece[1 - len(PLACED) :]

    loop = asyncio.get_running_loop()
    began = loop.time()
    end = began + seconds
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for number in range(clients):
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60, trust_env=False))
            tasks.create_task(stream(number, client))
    return {
        "peak_mib": peak_memory_mib(pid),
        "batches": orders / MOST_LINES,
        "per_second": orders / (loop.time() - began),
    }
