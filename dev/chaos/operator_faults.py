"""O: what operators do."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path

import psycopg

from dev.chaos.act import Act, kind
from dev.chaos.client_faults import CLIENTS, nothing
from dev.chaos.database_faults import ask, insist, operator
from dev.chaos.effect import FAILS_FIRST
from dev.chaos.process_faults import until
from dev.sandbox.process import ROOT
from relay import upkeep
from relay.database import DatabaseLost
from relay.settings import Settings
from relay.state import RelayState

BACKLOG = 200  # orders, which the broker does not hear of while it lasts
BEFORE_THE_END = 100  # rows that a partition still takes
LONGEST_SECONDS = 60.0
# For the mark, or an order's end: other faults hold them up, one after the other. An order whose message expired (M25)
# comes back after up to a minute, each time.
PATIENT_SECONDS = 300.0

PARTITION = """
    -- The one that takes the next row: the ids from `low` up to but not including `high`.
    SELECT name, high FROM (
        SELECT c.relname AS name,
               substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO [(]''([0-9]+)''[)]')::bigint AS high
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'outbox'::regclass
    ) AS partitions WHERE high > (SELECT last_value FROM outbox_id_seq) ORDER BY high LIMIT 1
"""
# As if all ids up to there had been drawn by transactions that rolled back.
SKIP = "SELECT setval('outbox_id_seq', greatest(nextval('outbox_id_seq'), %s))"
# The mark passes parked rows, which the partition is kept for.
IS_SETTLED = """
    SELECT mark >= %s - 1
           AND NOT EXISTS (SELECT FROM outbox WHERE state IN ('pending', 'parked') AND id < %s)
    FROM outbox_mark
"""
ARCHIVE = """
    INSERT INTO chaos_archive SELECT id, event_id::text, key, exchange, routing_key, state FROM outbox
    ON CONFLICT (id) DO UPDATE SET state = excluded.state
"""
IS_THERE = "SELECT to_regclass(%s) IS NOT NULL"


@kind(
    "O6",
    "failed orders are redriven during an outage",
    ("relay-mq", "mq-worker"),
    weight=1.5,
    seconds=(1.0, 4.0),
    keeps=lambda p: (f"wires {p}",),
)
async def redrive(act: Act) -> None:
    """Nobody carries what they are redriven with, or nobody hears of it, until the wires are back."""
    placed = await asyncio.gather(*(act.clients.place(reference=FAILS_FIRST) for _ in range(5)))
    failed = [order_id for order_id in placed if order_id is not None]
    await until(lambda: act.recorder.ended.keys() >= set(failed), PATIENT_SECONDS, "the orders have not failed")
    wires = act.stage.wires[act.place]
    for wire in wires:
        wire.cut()
    act.fired(f"{len(failed)} orders, {act.seconds:.1f} s")
    try:
        await asyncio.sleep(act.seconds / 2)
        await redrive_until_done(act, failed)
        await asyncio.sleep(act.seconds / 2)
    finally:
        for wire in wires:
            wire.mend()
    act.healed()


async def redrive_until_done(act: Act, order_ids: list[str]) -> None:
    """`orders dead redrive`, again where the database went away under it."""
    ids = [word for order_id in order_ids for word in ("--id", order_id)]
    end = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < end:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("orders")), "dead", "redrive", *ids,
            cwd=ROOT,
            env=os.environ | act.stage.system.urls_of("operator"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await process.wait()
        try:
            async with operator(act) as conn:
                cursor = await conn.execute(
                    "SELECT FROM orders WHERE order_id = ANY(%s::uuid[]) AND status = 'failed'", [order_ids]
                )
                if await cursor.fetchone() is None:
                    return
        except psycopg.OperationalError:
            await asyncio.sleep(0.2)
    raise TimeoutError("the orders could not be redriven")


@kind(
    "O8",
    "retention runs during a backlog",
    ("outbox",),
    weight=0.7,
    seconds=(1.0, 4.0),
    keeps=lambda p: (p, "wires relay-mq"),
)
async def retain_nothing(act: Act) -> None:
    """The oldest partition is dropped, all of whose rows are settled, while those of the next one cannot be sent."""
    name, high = await ask(act, PARTITION)
    await ask(act, SKIP, high - BEFORE_THE_END)
    act.clients.send(BACKLOG)
    end = time.monotonic() + PATIENT_SECONDS
    while not (await ask(act, IS_SETTLED, high, high))[0]:
        if time.monotonic() > end:
            raise TimeoutError(f"something in {name} is not settled")
        await asyncio.sleep(0.2)
    wires = act.stage.wires["relay-mq"]
    for wire in wires:
        wire.cut()
    try:
        act.clients.send(BACKLOG)
        await asyncio.sleep(act.seconds)
        await insist(act, ARCHIVE)
        await drop(act, name)
        act.fired(f"{name} is dropped, with {BACKLOG} orders waiting")
    finally:
        for wire in wires:
            wire.mend()
    act.healed()


async def drop(act: Act, name: str) -> None:
    """Do what a relay does whose RELAY_RETENTION has just been set to nothing, until the partition is gone."""
    urls = act.stage.system.urls_of("relay")
    settings = Settings.read(urls | {"RELAY_RETENTION": "0s"})
    end = time.monotonic() + LONGEST_SECONDS
    while (await ask(act, IS_THERE, name))[0]:
        if time.monotonic() > end:
            raise TimeoutError(f"{name} could not be dropped")
        with contextlib.suppress(DatabaseLost):
            await upkeep.look_after(settings, RelayState())
        await asyncio.sleep(0.2)


BAD_STARTS = (
    ("orders.app", {"ORDERS_PORT": "many"}, 2, "ORDERS_PORT"),
    ("orders.app", {"DATABASE_URL": "mysql://x"}, 2, "DATABASE_URL"),
    ("orders.worker", {"AMQP_URL": "http://x"}, 2, "AMQP_URL"),
    ("orders.worker", {"ORDERS_HANDLER": "no.such.module:work"}, 1, "ORDERS_HANDLER"),
    ("relay", {"RELAY_PORT": "-1"}, 2, "RELAY_PORT"),
)


@kind("O10", "a process started with a wrong setting", CLIENTS, weight=1, keeps=nothing)
async def bad_start(act: Act) -> None:
    """It ends at once, with one line that names the setting."""
    module, wrong, code, named = act.rng.choice(BAD_STARTS)
    urls = {"DATABASE_URL": act.stage.servers.database_url, "AMQP_URL": act.stage.servers.amqp_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module,
        cwd=ROOT,
        env={**os.environ, **urls, **wrong},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    act.fired(f"{module} with {wrong}")
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    lines = said.decode().strip().splitlines()
    assert process.returncode == code, f"{module} with {wrong} ended with {process.returncode}: {lines[-1:]}"
    assert len(lines) == 1, f"{module} with {wrong} said {lines}"
    assert named in lines[0], f"{module} with {wrong} said {lines}"
    act.healed()
