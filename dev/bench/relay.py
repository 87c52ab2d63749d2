"""What the relay carries, and what that costs: `make bench ONLY=relay`.

drain           a backlog to a quorum queue: this relay, and the same with aiormq's own publishing
backlog         in the long form: the same drain with a million rows, and the relay's memory at its most
publishing      the same two ways to publish, without a database: what the broker and the client leave
held horizon    the same drain while a transaction elsewhere holds the xmin horizon
sent rows       the time of a claim with many sent rows, and with none
idle            one event at a time: commit to confirm; and what a relay costs that has nothing to do
writer          what a writer's commit costs with the hint after it, without any, and with a NOTIFY in the transaction
"""

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, LiteralString

import httpx
import msgspec
import psycopg

from dev.bench import pgbench
from dev.bench.measurement import Bench
from dev.bench.outbox import BODY_BYTES, FILL, FILL_SENT, holding, template
from dev.bench.processes import cpu_seconds, family_cpu_seconds, its_family, peak_memory_mib
from dev.sandbox import packages
from dev.sandbox.ports import free_port
from dev.sandbox.process import Process, Spec, StartError, wait_until
from dev.sandbox.servers import Servers
from dev.sandbox.system import declare_topology
from orders.database.notify import RelayNotifier
from tests import places

RELAY_SETTINGS = {"RELAY_EXCHANGES": "orders", "RELAY_REQUIRED_QUEUES": "orders.work"}
LOOK_SECONDS = 0.1
BACKLOGS = (60_000, 1_000_000)
PUBLISHED = 100_000  # messages at most, where there is no database
PATIENCE_SECONDS = 600.0

ONE: LiteralString = """
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
    VALUES (%s, %s, 'orders', 'order.placed', true, 'application/cloudevents+json',
            '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"}', %s)
"""
WRITE = """
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, body)
    VALUES (gen_random_uuid(), gen_random_uuid()::text, 'orders', 'order.placed', true, 'text/plain',
            convert_to(repeat('x', 440), 'UTF8'));
"""
LISTEN_AND_HINT = """
import asyncio, sys, psycopg
from orders.database.notify import MAX_PAUSE_SECONDS, RelayNotifier
async def hint(url):
    async with RelayNotifier(url) as notifier:
        while True:
            notifier.soon(100)
            await asyncio.sleep(MAX_PAUSE_SECONDS)
async def main(url, hints):
    hinting = asyncio.create_task(hint(url)) if hints else None
    conn = await psycopg.AsyncConnection.connect(url, autocommit=True)
    await conn.execute("LISTEN outbox")
    async for _ in conn.notifies():
        pass
asyncio.run(main(*sys.argv[1:]))
"""


class Place(msgspec.Struct, frozen=True):
    """A database with an outbox, and a vhost with the topology."""

    database_url: str
    amqp_url: str
    folder: Path


@contextlib.contextmanager
def place(its: Servers, folder: Path, template: str) -> Iterator[Place]:
    """A copy of the template, and a fresh vhost."""
    with places.database(its, template) as database_url, places.vhost(its) as amqp_url:
        declare_topology(amqp_url)
        yield Place(database_url, amqp_url, folder)


class Relay:
    """One metered relay, from its start to what its meter says."""

    def __init__(self, where: Place, *words: str, **settings: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._meter = where.folder / f"meter-{port}.json"
        environ = os.environ | RELAY_SETTINGS | settings
        environ |= {"DATABASE_URL": where.database_url, "AMQP_URL": where.amqp_url, "RELAY_PORT": str(port)}
        self.process = Process(
            Spec(
                name=f"relay-{port}",
                command=(sys.executable, "-m", "dev.bench.metered_relay", *words),
                environ=environ | {"BENCH_METER": str(self._meter)},
                ready_url=f"{self.url}/health/ready",
            ),
            where.folder,
            restart=False,
        )
        self._client = httpx.Client(timeout=5, trust_env=False)
        self.meter: dict[str, Any] = {}

    def __enter__(self) -> "Relay":
        self.process.start()
        wait_until(self.process.is_ready, 30, lambda: f"relay: {self.process.last_line()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self.process.stop()
        with contextlib.suppress(FileNotFoundError):
            self.meter = json.loads(self._meter.read_text())

    @property
    def pid(self) -> int:
        pid = self.process.pid
        if pid is None:
            raise StartError(f"the relay ended: {self.process.last_line()}")
        return pid

    def published(self) -> int:
        """Return how many messages were confirmed so far."""
        return int(self._client.get(f"{self.url}/status").json()["published"])

    def metrics(self) -> dict[str, float]:
        """Return its metrics by name."""
        lines = self._client.get(f"{self.url}/metrics").text.splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if line and not line.startswith("#")}


def measure(bench: Bench) -> None:
    """All of it."""
    packages.ensure(["postgres"])
    rows, rounds = (500_000, 3) if bench.full else (60_000, 2)
    its = bench.servers
    told = {name: value for name, value in os.environ.items() if name.startswith("RELAY_")}
    bench.settings(rows=rows, body_bytes=BODY_BYTES, relay=RELAY_SETTINGS | told)
    with tempfile.TemporaryDirectory(prefix="bench-relay-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with template(its, FILL, rows=rows, body=BODY_BYTES) as full:
            _drain(bench, its, folder, full, rows, rounds)
        if bench.full:
            _backlog(bench, its, folder)
        _publishing(bench, its, PUBLISHED if bench.full else PUBLISHED // 2, rounds)
        with template(its) as empty:
            _latency(bench, its, folder, empty, rounds)
            _idle(bench, its, folder, empty)
            _sent_rows(bench, its, folder, empty, rounds)
            _writer(bench, its, folder, empty, rounds)


def _drain(bench: Bench, its: Servers, folder: Path, full: str, rows: int, rounds: int) -> None:
    def run(*words: str, held: bool = False) -> dict[str, float]:
        with place(its, folder, full) as where, holding(where.database_url) if held else contextlib.nullcontext():
            return drain_once(its, where, rows, *words)

    bench.compare("drain", {"relay": run, "gathered basic_publish": partial(run, "gathered")}, rounds)
    bench.ratio(
        "drain: relay / gathered", "drain", "messages_per_second", "relay", "gathered basic_publish", "at least 2"
    )
    bench.compare("held horizon", {"free": run, "held": partial(run, held=True)}, rounds)
    bench.ratio("rate: held / free", "held horizon", "messages_per_second", "held", "free", "at least 0.9")
    bench.ratio("claims in the last fifth: held / free", "held horizon", "claim_ms_in_fifth_5", "held", "free", "flat")


def drain_once(its: Servers, where: Place, rows: int, *words: str) -> dict[str, float]:
    """Let a relay empty the backlog; the clock runs from its first confirm to its last."""
    with Relay(where, *words) as relay:
        until = time.monotonic() + PATIENCE_SECONDS
        pids = {"relay": [relay.pid], "postgres": its_family(its, "postgres"), "rabbitmq": its_family(its, "rabbitmq")}
        while (first := relay.published()) == 0:
            time.sleep(0.02)
        began, cpu = time.monotonic(), {name: family_cpu_seconds(each) for name, each in pids.items()}
        claims = [relay.metrics()]
        done = first
        while done < rows:
            if time.monotonic() > until:
                raise StartError(f"{done} of {rows} after {PATIENCE_SECONDS:g} s: {relay.process.last_line()}")
            time.sleep(LOOK_SECONDS)
            done = relay.published()
            claims.append(relay.metrics())
        ended = time.monotonic()
        spent = {name: family_cpu_seconds(each) - cpu[name] for name, each in pids.items()}
        memory = peak_memory_mib(relay.pid)
    moved = rows - first
    fifths = [claims[round(part * (len(claims) - 1) / 5)] for part in range(6)]
    return {
        "messages_per_second": moved / (ended - began),
        "relay_us_per_message": spent["relay"] / moved * 1e6,
        "postgres_us_per_message": spent["postgres"] / moved * 1e6,
        "rabbitmq_us_per_message": spent["rabbitmq"] / moved * 1e6,
        "relay_memory_mib_at_most": memory,
        "wave_ms": relay.meter["wave_seconds"] / relay.meter["waves"] * 1e3,
        **{f"claim_ms_in_fifth_{part + 1}": claim_ms(*fifths[part : part + 2]) for part in range(5)},
    }


def _backlog(bench: Bench, its: Servers, folder: Path) -> None:
    """A relay that has been away for long: what it carries, and what it takes for itself meanwhile."""

    def run(name: str, rows: int) -> dict[str, float]:
        with place(its, folder, name) as where:
            return drain_once(its, where, rows)

    with (
        template(its, FILL, rows=BACKLOGS[0], body=BODY_BYTES) as small,
        template(its, FILL, rows=BACKLOGS[1], body=BODY_BYTES) as large,
    ):
        few, many = (f"{rows:,}" for rows in BACKLOGS)
        bench.compare("backlog", {few: partial(run, small, BACKLOGS[0]), many: partial(run, large, BACKLOGS[1])}, 2)
    bench.ratio(f"rate: backlog of {many} / {few}", "backlog", "messages_per_second", many, few, "at least 0.9")
    bench.ratio(f"memory: backlog of {many} / {few}", "backlog", "relay_memory_mib_at_most", many, few, "flat")


def claim_ms(before: dict[str, float], after: dict[str, float]) -> float:
    """Return the mean time of a claim between two looks at the metrics."""
    count = after["relay_poll_seconds_count"] - before["relay_poll_seconds_count"]
    return (after["relay_poll_seconds_sum"] - before["relay_poll_seconds_sum"]) / count * 1e3 if count else 0.0


def _publishing(bench: Bench, its: Servers, rows: int, rounds: int) -> None:
    """Both ways to publish, in a process of their own that has nothing else to do."""

    def run(how: str) -> dict[str, float]:
        with places.vhost(its) as amqp_url:
            declare_topology(amqp_url)
            done = subprocess.run(
                [sys.executable, "-m", "dev.bench.raw_publishing", how, amqp_url, str(rows), str(BODY_BYTES)],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            return dict(json.loads(done.stdout))

    ways = ("in batches", "basic_publish")
    bench.compare("publishing", {how: partial(run, how) for how in ways}, rounds)
    bench.ratio("publishing CPU: in batches / basic_publish", "publishing", "cpu_us_per_message", *ways, "at most 0.2")


def _latency(bench: Bench, its: Servers, folder: Path, empty: str, rounds: int) -> None:
    """One event at a time: from the commit to the confirm of its message."""

    def run(hints: bool) -> dict[str, float]:
        with place(its, folder, empty) as where, Relay(where) as relay, writing(where, hints=hints) as write:
            write(10)  # warm
            committed = write(200 if hints else 15)
        confirmed = dict(relay.meter["confirmed_at"])
        waits = sorted((confirmed[each] - at) * 1e3 for each, at in committed.items() if each in confirmed)
        return {"p50_ms": statistics.median(waits), "p99_ms": waits[int(len(waits) * 0.99)], "max_ms": waits[-1]}

    bench.compare("commit to confirm", {"hinted": partial(run, True), "polled": partial(run, False)}, rounds)


def _idle(bench: Bench, its: Servers, folder: Path, empty: str) -> None:
    """A relay with nothing to do."""

    def run() -> dict[str, float]:
        with place(its, folder, empty) as where, Relay(where) as relay:
            time.sleep(2)
            queries, cpu, began = transactions(where.database_url), cpu_seconds(relay.pid), time.monotonic()
            time.sleep(10)
            passed, spent = time.monotonic() - began, cpu_seconds(relay.pid) - cpu
            return {
                "transactions_per_second": (transactions(where.database_url) - queries) / passed,
                "cpu_percent": spent / passed * 100,
            }

    bench.compare("idle relay", {"relay": run}, 1)


def _sent_rows(bench: Bench, its: Servers, folder: Path, empty: str, rounds: int) -> None:
    """A trickle of single rows: each is found by a claim of its own."""
    many = 5_000_000 if bench.full else 500_000

    def run(name: str) -> dict[str, float]:
        with place(its, folder, name) as where, Relay(where) as relay, writing(where) as write:
            write(20)  # warm
            before = relay.metrics()
            write(150)
            return {"claim_ms": claim_ms(before, relay.metrics())}

    with template(its, FILL_SENT, rows=many) as sent:
        bench.compare("sent rows", {"none": partial(run, empty), f"{many:,}": partial(run, sent)}, rounds)
    bench.ratio("claim: sent rows / none", "sent rows", "claim_ms", f"{many:,}", "none", "at most 1.5")


def _writer(bench: Bench, its: Servers, folder: Path, empty: str, rounds: int) -> None:
    """What the hint costs those who write."""

    def run(how: str) -> dict[str, float]:
        with place(its, folder, empty) as where:
            return write_with_pgbench(where, how)

    ways = ("no hint", "hint after the commit", "NOTIFY in the transaction")
    bench.compare("writer", {how: partial(run, how) for how in ways}, rounds)
    bench.ratio("commits: hint after / none", "writer", "commits_per_second", ways[1], ways[0])
    bench.ratio("commits: NOTIFY inside / none", "writer", "commits_per_second", ways[2], ways[0])


Write = Callable[[int], dict[str, float]]


@contextlib.contextmanager
def writing(where: Place, *, hints: bool = True) -> Iterator[Write]:
    """A writer that commits one row at a time and then hints, as our api does; it returns when each was committed."""

    async def write(rows: int) -> dict[str, float]:
        committed: dict[str, float] = {}
        conn = await psycopg.AsyncConnection.connect(where.database_url, autocommit=True)
        async with conn, RelayNotifier(where.database_url) as notifier:
            notifier.soon()
            await asyncio.sleep(0.5)  # the connections are there, the relay is at rest
            for _ in range(rows):
                event_id = uuid.uuid4()
                await conn.execute(ONE, (event_id, str(event_id), b"x" * BODY_BYTES))
                committed[str(event_id)] = time.monotonic()
                if hints:
                    notifier.soon()
                await asyncio.sleep(0.02 if hints else 0.3)
            await asyncio.sleep(0.5)
        return committed

    yield lambda rows: asyncio.run(write(rows))


def transactions(database_url: str) -> float:
    """Return how many transactions this database has ended."""
    name = database_url.rpartition("/")[2]
    # Asked from another database, or the question would count itself.
    with psycopg.connect(database_url.rpartition("/")[0] + "/postgres", autocommit=True) as conn:
        time.sleep(1.1)  # each backend reports once a second
        row = conn.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", (name,)
        ).fetchone()
    assert row is not None
    return float(row[0])


def write_with_pgbench(where: Place, how: str) -> dict[str, float]:
    """Sixteen writers that commit a row each, again and again, while somebody listens as a relay does."""
    script = where.folder / "writer.sql"
    script.write_text(f"BEGIN;\n{WRITE}NOTIFY outbox;\nCOMMIT;\n" if "NOTIFY" in how else WRITE)
    with listening(where.database_url, hints="hint after" in how):
        rate, milliseconds = pgbench.run(where.database_url, script, clients=16, seconds=4)
    return {"commits_per_second": rate, "commit_ms": milliseconds}


@contextlib.contextmanager
def listening(database_url: str, *, hints: bool) -> Iterator[None]:
    """Listen as a relay does; with `hints`, also hint as often as our api does under load."""
    process = subprocess.Popen([sys.executable, "-c", LISTEN_AND_HINT, database_url, "hint" * hints])
    try:
        yield
    finally:
        process.kill()
        process.wait()
