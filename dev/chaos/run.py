"""One seed: open the stage, let clients and faults at it, let it settle, and hold what is left to the invariants."""

import asyncio
import contextlib
import os
import platform
import random
import subprocess
import time
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import psycopg
from psycopg import AsyncConnection

from dev.chaos import invariants
from dev.chaos.act import KINDS, Act, Planned, Record
from dev.chaos.clients import Clients
from dev.chaos.evidence import Evidence, Sample, collect
from dev.chaos.invariants import InvariantResult
from dev.chaos.ledger import Ledger, now
from dev.chaos.recorder import Recorder
from dev.chaos.stage import PLAIN, TRANSACTIONAL, Stage, staged
from dev.sandbox import packages
from dev.sandbox.process import ROOT

Say = Callable[[str], None]

SETTLE_SECONDS = 90.0  # the bound of the liveness phase
RECOVERY_SECONDS = 60.0  # longer than this no fault's recovery is watched
TICK_SECONDS = 1.0
WARM_SECONDS = 2.0
THREADS = 64
LEAST_SHARE = 0.25  # of the orders that were wanted: with fewer acknowledged, a run proves nothing
REST_SECONDS = 8.0  # before what is left over is counted: servers notice dead sessions after seconds

LEFT = "SELECT count(*) FROM orders WHERE status IN ('placed', 'processing')"
UNSENT = """
    SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
    FROM outbox WHERE settled_at IS NULL
"""
WHAT_IS_LEFT = """
    SELECT o.status, coalesce(o.worker, 0), e.routing_key, e.state, o.attempts, count(*), min(o.order_id::text),
           min(o.updated_at), EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = o.worker::oid)
    FROM orders o JOIN outbox e ON e.key = o.order_id::text
    WHERE o.status IN ('placed', 'processing') OR e.settled_at IS NULL GROUP BY 1, 2, 3, 4, 5, 9
"""
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


class Tick(msgspec.Struct, frozen=True):
    """How it went at one moment, seen from outside."""

    at: float
    accepted: int
    ended: int


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for; the same seed with the same of these is the same run."""

    seed: int = 1
    minutes: float = 5.0
    faults: str = "*"
    rate: float = 75.0
    one_by_one: bool = False  # each fault begins when the system has recovered from the one before


class SeedResult(msgspec.Struct, kw_only=True):
    """All that is reported of one seed."""

    asked: Asked
    ok: bool
    accepted: int
    orders: int
    events: int
    fired: int
    kinds: int
    seconds: float
    settled_seconds: float | None
    vacuous: list[str]
    results: list[InvariantResult]
    records: list[Record]
    ticks: list[Tick]
    answers: dict[int, int]
    machine: str
    at: str
    commit: str = ""
    handler: str = PLAIN


class Run:
    """Owns the clients, the recorder and the faults of one seed."""

    def __init__(self, stage: Stage, records: list[Record], asked: Asked) -> None:
        self.stage = stage
        self.asked = asked
        self.records = records
        self.ledger = Ledger(stage.folder / "clients.jsonl")
        self.clients = Clients(stage.base_url, self.ledger, asked.rate)
        self.recorder = Recorder(stage.servers.amqp_url, stage.folder / "heard.jsonl")
        self.ticks: list[Tick] = []
        self.began = now()
        self._locks: dict[str, asyncio.Lock] = {}
        self._at_work: dict[int, float] = {}  # record -> when it began; kept while it has not recovered

    async def go(self, say: Say) -> Evidence:
        """From the first order to the last invariant's evidence."""
        await self.recorder.start()
        await self.clients.start()
        await asyncio.sleep(WARM_SECONDS)
        before, connections_before = await self._samples()
        self.began = now()
        ticking = asyncio.create_task(self._tick(), name="ticks")
        async with asyncio.TaskGroup() as faults:
            for record in list(self.records):
                if self.asked.one_by_one and now() - self.began > self.asked.minutes * 60:
                    self.records.remove(record)
                    continue
                await asyncio.sleep(max(0.0, record.planned.at - (now() - self.began)))
                fault = faults.create_task(self._break(record, say), name=f"fault {record.planned.kind}")
                if self.asked.one_by_one:
                    await fault
                    await asyncio.sleep(1)
        say("every fault is over: no new orders, and let it settle")
        settling = now()
        await self.clients.stop()
        settled, oldest = await self._settle(settling, say)
        await asyncio.sleep(REST_SECONDS)
        after, connections_after = await self._samples()
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        await self.recorder.stop()
        await self.ledger.close()
        found = await collect(self.stage.folder, self.stage.servers.database_url, self.stage.servers.amqp_url)
        return msgspec.structs.replace(
            found, exactly_once=self.stage.handler == TRANSACTIONAL,
            settled_seconds=settled, oldest_pending=oldest, before=before, after=after,
            connections_before=connections_before, connections_after=connections_after,
        )  # fmt: skip

    async def _break(self, record: Record, say: Say) -> None:
        kind = KINDS[record.planned.kind]
        watching: list[asyncio.Task[None]] = []

        def watch(waiting: set[str]) -> None:
            watching.append(asyncio.create_task(self._recover(record, waiting), name="recovery"))

        act = Act(self.stage, self.clients, self.recorder, record, self.began, watch)
        async with contextlib.AsyncExitStack() as stack:
            for name in sorted(kind.keeps(record.planned.place)):
                await stack.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
            record.alone = not self._at_work
            for other in self._at_work:
                self.records[other].alone = False
            mine = self.records.index(record)
            self._at_work[mine] = now()
            try:
                await kind.run(act)
            except Exception as error:  # a fault that failed is what is reported, whatever it failed with
                record.error = f"{type(error).__name__}: {error}"[:300] or traceback.format_exc()[-300:]
            act.healed()
        line = (
            f"{record.planned.kind} {record.planned.place} {record.detail}{' ' + record.error if record.error else ''}"
        )
        say(f"[{now() - self.began:5.0f} s] {line}")
        try:
            await asyncio.gather(*watching)
        finally:
            self._at_work.pop(mine, None)

    async def _recover(self, record: Record, waiting: set[str]) -> None:
        """Measure how long what was accepted until the fault was over takes to end."""
        if record.fired_at is None or record.healed_at is None:
            return
        end = time.monotonic() + RECOVERY_SECONDS
        while waiting and time.monotonic() < end:
            # Not `waiting -= ended`: that walks through all that ever ended, and starves the wires in this loop.
            waiting = {order_id for order_id in waiting if order_id not in self.recorder.ended}
            await asyncio.sleep(0.05)
        if not waiting:
            record.recovery_seconds = round(now() - self.began - record.healed_at, 3)

    async def _tick(self) -> None:
        while True:
            self.ticks.append(Tick(round(now() - self.began, 2), len(self.clients.accepted), len(self.recorder.ended)))
            await asyncio.sleep(TICK_SECONDS)

    async def _settle(self, since: float, say: Say) -> tuple[float | None, float]:
        """Wait until every order has ended and every event is heard; return how long it took, and what is oldest."""
        oldest = 0.0
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(psycopg.Error, OSError, TimeoutError, RuntimeError):
                async with await AsyncConnection.connect(
                    self.stage.servers.database_url, autocommit=True, connect_timeout=5
                ) as conn:
                    left = await (await conn.execute(LEFT)).fetchone()
                    unsent = await (await conn.execute(UNSENT)).fetchone()
                assert left is not None
                assert unsent is not None
                oldest = unsent[1]
                if left[0] == 0 and unsent[0] == 0 and await self.recorder.depth() == 0:
                    return now() - since, 0.0
            await asyncio.sleep(0.2)
        await self._explain(say)
        return None, oldest

    async def _explain(self, say: Say) -> None:
        """Say what is left, for whoever has to find out why."""
        url = self.stage.servers.database_url
        async with await AsyncConnection.connect(url, autocommit=True, connect_timeout=5) as conn:
            for row in await (await conn.execute(WHAT_IS_LEFT)).fetchall():
                say(" ".join(map(str, row)))
        say(f"{await self.recorder.depth()} events not heard")
        queues = await asyncio.to_thread(queues_of, self.stage)
        say(f"queues: {queues}")

    async def _samples(self) -> tuple[list[Sample], int]:
        samples = []
        for process in self.stage.system.processes:
            pid = process.pid
            if pid is not None:
                with contextlib.suppress(OSError):
                    samples.append(sample(process.name, pid, tasks_of(self.stage.folder, process.name)))
        async with await AsyncConnection.connect(self.stage.servers.database_url, autocommit=True) as conn:
            row = await (await conn.execute(CONNECTIONS)).fetchone()
        assert row is not None
        return samples, int(row[0])


def tasks_of(folder: Path, name: str) -> int:
    """How many tasks a process says it has; nginx has none."""
    try:
        return int((folder / "inside" / f"{name}.tasks").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def sample(name: str, pid: int, tasks: int) -> Sample:
    """What the kernel says of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(name, round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1), descriptors, tasks)


async def versions_of(stage: Stage) -> str:
    """Which servers it ran on."""
    async with await AsyncConnection.connect(stage.servers.database_url, autocommit=True) as conn:
        row = await (await conn.execute("SELECT split_part(current_setting('server_version'), ' ', 1)")).fetchone()
    assert row is not None
    broker = (await asyncio.to_thread(told_by_broker, stage, "overview"))["rabbitmq_version"]
    nginx = str(packages.find("nginx"))
    said = await asyncio.to_thread(subprocess.run, [nginx, "-v"], capture_output=True, text=True, check=True)
    return f"PostgreSQL {row[0]}, RabbitMQ {broker}, nginx {said.stderr.strip().rpartition('/')[2]}"


def told_by_broker(stage: Stage, what: str) -> Any:
    """What the management interface says of itself or its queues."""
    url = urlsplit(str(stage.servers.management_url))
    auth = (url.username or "", url.password or "")
    return httpx.get(f"http://{url.hostname}:{url.port}/api/{what}", auth=auth, timeout=10, trust_env=False).json()


def queues_of(stage: Stage) -> str:
    """What the broker says of its queues."""
    return ", ".join(
        f"{each['name']} {each.get('messages_ready')} ready {each.get('messages_unacknowledged')} unacked "
        f"{each.get('consumers')} consumers"
        for each in told_by_broker(stage, "queues")
    )


async def run_seed(asked: Asked, planned: list[Planned], folder: Path, say: Say) -> SeedResult:
    """Run one seed in this folder, which is empty; return what is to be reported."""
    # A fault may wait for half a minute in a thread; with asyncio's six, the end of another would wait for that.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="chaos"))
    random.seed(asked.seed)  # for what is not planned: jitter, and how the wires cut
    started = time.monotonic()
    load = os.getloadavg()[0]
    records = [Record(planned=each) for each in planned]
    async with _staged(folder, handler_of(asked.seed), say) as stage:
        run = Run(stage, records, asked)
        versions = await versions_of(stage)
        evidence = await run.go(say)
    results = invariants.check_all(evidence)
    vacuous = invariants.vacuous(evidence, records, int(asked.rate * asked.minutes * 60 * LEAST_SHARE))
    return SeedResult(
        asked=asked,
        ok=not vacuous and not any(result.violations for result in results),
        accepted=len(run.clients.accepted),
        orders=len(evidence.orders),
        events=len(evidence.heard),
        fired=sum(record.fired_at is not None for record in records),
        kinds=len({record.planned.kind for record in records if record.fired_at is not None}),
        seconds=round(time.monotonic() - started, 1),
        settled_seconds=evidence.settled_seconds and round(evidence.settled_seconds, 1),
        vacuous=vacuous,
        results=results,
        records=records,
        ticks=run.ticks,
        answers=dict(run.clients.answers),
        machine=f"{machine()}, {versions}, load {load:.0f} before and {os.getloadavg()[0]:.0f} after",
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        commit=commit(),
        handler=handler_of(asked.seed),
    )


def handler_of(seed: int) -> str:
    """Every third seed has its effects in the database, in the transaction that finishes the order."""
    return TRANSACTIONAL if seed % 3 == 0 else PLAIN


@contextlib.asynccontextmanager
async def _staged(folder: Path, handler: str, say: Say) -> AsyncIterator[Stage]:
    say("starting PostgreSQL, RabbitMQ, nginx, three apis, three relays, three workers, and their wires")
    async with staged(folder, handler) as stage:
        yield stage
        say("ending them")


def machine() -> str:
    """What it ran on."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def commit() -> str:
    """What was tested, as git names it; empty where there is no git to ask."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
