"""All that is left of a run: what was written down outside, and what the tables say. The checkers read nothing else."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import LiteralString, TypeVar

import aiormq
import msgspec
from pamqp.commands import Basic
from psycopg import AsyncConnection
from psycopg.errors import Diagnostic

from dev.chaos.broker_faults import POISON
from dev.chaos.effect import Effect
from dev.chaos.ledger import Answer, Forgotten, Intent, Odd, read
from dev.chaos.recorder import Heard
from dev.sandbox.process import ROOT
from orders.broker.topology import DEAD_QUEUE

ORDERS: LiteralString = "SELECT order_id::text, status, version, attempts, coalesce(total_minor, 0) FROM orders"
ROWS: LiteralString = """
    SELECT id, event_id::text, key, exchange, routing_key, state FROM outbox
    UNION ALL  -- what retention has dropped meanwhile; an archived row may be there still
    SELECT id, event_id, key, exchange, routing_key, state FROM chaos_archive a
    WHERE NOT EXISTS (SELECT FROM outbox o WHERE o.id = a.id)
    ORDER BY 1
"""
EFFECTS: LiteralString = "SELECT order_id, version, attempt, total_minor, process, at FROM chaos_effects"
KEYS: LiteralString = "SELECT key, order_id::text FROM idempotency_keys WHERE operation = 'place'"
LETTERS_ARE_THERE: LiteralString = "SELECT to_regclass('dead_letters') IS NOT NULL"
DEAD_LETTERS: LiteralString = (
    "SELECT coalesce(body, ''), coalesce(order_id::text, '') FROM dead_letters WHERE state = 'dead'"
)

# VACUUM says of each table how many dead rows it could not remove, because somebody might still see them.
VACUUM: LiteralString = "VACUUM (VERBOSE) orders, outbox, retries, idempotency_keys"
UNREMOVABLE = re.compile(r"(\d+) are dead but not yet removable")


class OrderRow(msgspec.Struct, frozen=True):
    """An order as its table has it."""

    order_id: str
    status: str
    version: int
    attempts: int
    total_minor: int


class OutboxRow(msgspec.Struct, frozen=True):
    """An outbox row; one without an exchange is no event, but a message sent again."""

    id: int
    event_id: str
    order_id: str
    exchange: str
    type: str
    state: str


class Sample(msgspec.Struct, frozen=True):
    """What a process, or the database's connections, cost at one moment."""

    name: str
    memory_mb: float
    descriptors: int
    tasks: int = 0  # of asyncio; 0 where there is no telling


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the invariants are held against."""

    intents: list[Intent] = []
    answers: list[Answer] = []
    odd: list[Odd] = []
    heard: list[Heard] = []
    effects: list[Effect] = []
    exactly_once: bool = False  # the effects were committed together with the orders' ends
    forgotten: list[Forgotten] = []
    orders: list[OrderRow] = []
    rows: list[OutboxRow] = []
    keys: dict[str, str] = {}
    dead_orders: list[str] = []  # of dead letters that are none of our poison
    settled_seconds: float | None = None  # from the last fault's end; None: not within its time
    oldest_pending: float = 0.0
    before: list[Sample] = []
    after: list[Sample] = []
    reconciled: list[str] = []  # what `orders reconcile` found, of orders it was right to look at
    reconciled_orders: int = 0
    connections_before: int = 0
    connections_after: int = 0
    dead_rows: int = 0  # that VACUUM could not remove


Line = TypeVar("Line")


async def collect(folder: Path, database_url: str, amqp_url: str) -> Evidence:
    """Read the files and the tables; the rest is the caller's to fill in."""
    entries = list(read(folder / "clients.jsonl"))
    async with await AsyncConnection.connect(database_url, autocommit=True) as conn:

        async def rows(statement: LiteralString) -> list[tuple[object, ...]]:
            return await (await conn.execute(statement)).fetchall()

        dead = await dead_letters(amqp_url)
        reconciled, reconciled_orders = await reconcile(database_url, amqp_url)
        if (await rows(LETTERS_ARE_THERE)) == [(True,)]:
            dead += [(bytes(body), str(order_id)) for body, order_id in await rows(DEAD_LETTERS)]  # type: ignore[call-overload]
        return Evidence(
            intents=[each for each in entries if isinstance(each, Intent)],
            answers=[each for each in entries if isinstance(each, Answer)],
            odd=[each for each in entries if isinstance(each, Odd)],
            forgotten=[each for each in entries if isinstance(each, Forgotten)],
            dead_rows=await unremovable(conn),
            heard=lines(folder / "heard.jsonl", Heard),
            effects=[
                *lines(folder / "effects.jsonl", Effect),
                *(Effect(*row) for row in await rows(EFFECTS)),  # type: ignore[arg-type]
            ],
            orders=[OrderRow(*row) for row in await rows(ORDERS)],  # type: ignore[arg-type]
            rows=[OutboxRow(*row) for row in await rows(ROWS)],  # type: ignore[arg-type]
            reconciled=reconciled,
            reconciled_orders=reconciled_orders,
            keys=dict(await rows(KEYS)),  # type: ignore[arg-type]
            dead_orders=[order_id or body[:80].decode(errors="replace") for body, order_id in dead
                         if POISON.strip() not in body],
        )  # fmt: skip


async def reconcile(database_url: str, amqp_url: str) -> tuple[list[str], int]:
    """Run the command that people run; return what it found, and how many orders it looked at."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("orders")), "reconcile", "--json", "--broker", "--grace", "1",
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": database_url, "AMQP_URL": amqp_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    if process.returncode not in {0, 1}:
        return [f"it ended with {process.returncode}: {err.decode()[-200:]}"], 0
    report = msgspec.json.decode(out)
    found = [f"{each['order_id']}: {each['kind']}, {each['cause']}: {each['reason']}" for each in report["findings"]]
    return found, report["orders"]


async def unremovable(conn: AsyncConnection) -> int:
    """Vacuum what changes most; return how many dead rows somebody still holds, at the best of three tries."""
    counts = []
    for _ in range(3):
        told: list[str] = []

        def hear(notice: Diagnostic, told: list[str] = told) -> None:
            told.append(notice.message_primary or "")

        conn.add_notice_handler(hear)
        await conn.execute(VACUUM)
        conn.remove_notice_handler(hear)
        found = [int(number) for text in told for number in UNREMOVABLE.findall(text)]
        assert found, "VACUUM did not say what it left"
        counts.append(sum(found))
    return min(counts)


async def dead_letters(amqp_url: str) -> list[tuple[bytes, str]]:
    """Take the messages out of the dead-letter queue; return each body, with an empty order id."""
    found = []
    async with aiormq.connect(amqp_url) as connection:
        channel = await connection.channel()
        while isinstance((message := await channel.basic_get(DEAD_QUEUE, no_ack=True)).delivery, Basic.GetOk):
            found.append((bytes(message.body), ""))
    return found


def lines(path: Path, of: type[Line]) -> list[Line]:
    """Read a file of which each line is one of these."""
    if not path.exists():
        return []
    decode = msgspec.json.Decoder(of).decode
    return [decode(line) for line in path.read_bytes().splitlines()]
