"""What the servers do without us, and so what is left for us to lose: `make bench ONLY=limits`.

placing     pgbench with the very statement of an api's writers, one order a call and 64 orders a call
consuming   a quorum queue emptied by a consumer that only acks: aiormq's own way, and our worker's consumer

Publishing without a database is in `make bench ONLY=relay`.
"""

import asyncio
import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import LiteralString

import msgspec
import psycopg

from dev.bench import pgbench
from dev.bench.measurement import Bench
from dev.bench.outbox import BODY_BYTES, template
from dev.bench.processes import family_cpu_seconds, its_family
from dev.bench.record import Figures
from dev.sandbox import packages
from dev.sandbox.servers import Servers
from dev.sandbox.system import declare_topology
from orders.database import postgres
from orders.database.place_orders import PLACE, PLANNED_ONCE, parameters_of, placement_of
from orders.model.order import Line, NewOrder
from orders.model.traceparent import continue_trace
from orders.runtime.settings import WorkerSettings
from tests import places

BATCHES = (1, 64)  # orders a call
CLIENTS = 8
SESSION = PLANNED_ONCE | {"jit": "off"}  # as the api's writers have it
# The order that wrk places, too.
ORDER = NewOrder(
    customer_id="17850",
    currency="GBP",
    reference="536365",
    lines=[
        Line(sku="85123A", description="WHITE HANGING HEART T-LIGHT HOLDER", quantity=6, unit_price_minor=255),
        Line(sku="71053", description="WHITE METAL LANTERN", quantity=6, unit_price_minor=339),
    ],
)
# New ones in each call, and ascending, as ours are: random ones would be scattered over their indexes.
FRESH = """
    ARRAY(SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
                  || right(gen_random_uuid()::text, 23))::uuid
          FROM generate_series(1, {rows}))
"""
IDS = ("order_id", "event_id")
COUNT: LiteralString = "SELECT count(*) FROM orders"


def measure(bench: Bench) -> None:
    """All of it."""
    packages.ensure(["postgres"])
    its = bench.servers
    seconds, rows, rounds = (10, 100_000, 3) if bench.full else (4, 30_000, 2)
    prefetch = default_prefetch()
    bench.settings(seconds=seconds, clients=CLIENTS, messages=rows, body_bytes=BODY_BYTES, prefetch=prefetch)
    with tempfile.TemporaryDirectory(prefix="bench-limits-") as name, template(its) as empty:
        sides = {f"{each} a call": partial(place, its, Path(name), empty, each, seconds) for each in BATCHES}
        bench.compare("placing", sides, rounds)
    one, many = sides
    bench.ratio(f"orders/s: {many} / {one}", "placing", "orders_per_second", many, one)
    if bench.values("placing", one, "postgres_us_per_order"):
        bench.ratio(f"PostgreSQL's CPU for an order: {many} / {one}", "placing", "postgres_us_per_order", many, one)
    ways = ("our consumer", "aiormq")
    bench.compare("consuming", {how: partial(consume, its, how, rows, prefetch) for how in ways}, rounds)
    bench.ratio("messages/s: our consumer / aiormq", "consuming", "messages_per_second", *ways)
    bench.ratio("CPU for a message: our consumer / aiormq", "consuming", "consumer_us_per_message", *ways)


def default_prefetch() -> int:
    """Return how many messages our worker has in hand at most."""
    fields = msgspec.structs.fields(WorkerSettings)
    return int(next(field.default for field in fields if field.name == "worker_concurrency"))


def columns() -> list[str]:
    """Return the names of the columns of PLACE, in their order."""
    found = re.search(r"\) AS t \(([^)]*)\)", PLACE)
    assert found is not None
    return [name.strip() for name in found[1].split(",")]


def script(rows: int) -> str:
    """Return PLACE for pgbench: a variable for each of its columns, but ids that are new in each call."""
    values = [FRESH.format(rows=rows).strip() if name in IDS else f":{name}" for name in columns()]
    head, *rest = PLACE.split("%b")
    return head + "".join(value + text for value, text in zip(values, rest, strict=True)) + ";\n"


async def batch(database_url: str, rows: int) -> dict[str, str]:
    """Return a batch as its writer would send it, in PostgreSQL's own text, by column."""
    sent = parameters_of([placement_of(ORDER, client="", traceparent=continue_trace(None)) for _ in range(rows)])
    conn = await postgres.connect(database_url, "bench")
    try:
        found = await (await conn.execute("SELECT " + ", ".join(["%b::text"] * len(sent)), sent)).fetchone()
    finally:
        await postgres.close(conn)
    assert found is not None
    return {name: text for name, text in zip(columns(), found, strict=True) if name not in IDS}


def place(its: Servers, folder: Path, empty: str, rows: int, seconds: int) -> Figures:
    """Let pgbench place so many orders a call."""
    file = folder / f"place-{rows}.sql"
    file.write_text(script(rows))
    with places.database(its, empty) as url:
        values = asyncio.run(batch(url, rows))
        servers = its_family(its, "postgres")
        before = family_cpu_seconds(servers)
        rate, milliseconds = pgbench.run(url, file, clients=CLIENTS, seconds=seconds, values=values, session=SESSION)
        spent = family_cpu_seconds(servers) - before
        with psycopg.connect(url, autocommit=True) as conn:
            row = conn.execute(COUNT).fetchone()
    assert row is not None
    told = {"postgres_us_per_order": spent / row[0] * 1e6} if servers else {}  # of a container's processes we know none
    return {"orders_per_second": rate * rows, "call_ms": milliseconds, **told}


def consume(its: Servers, how: str, rows: int, prefetch: int) -> Figures:
    """Fill a queue, then have a process of its own empty it."""
    with places.vhost(its) as amqp_url:
        declare_topology(amqp_url)
        _told("dev.bench.raw_publishing", "in batches", amqp_url, str(rows), str(BODY_BYTES))
        servers = its_family(its, "rabbitmq")
        before = family_cpu_seconds(servers)
        figures = _told("dev.bench.raw_consuming", how, amqp_url, str(rows), str(prefetch))
        spent = family_cpu_seconds(servers) - before
    return figures | ({"rabbitmq_us_per_message": spent / rows * 1e6} if servers else {})


def _told(module: str, *words: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", module, *words], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))
