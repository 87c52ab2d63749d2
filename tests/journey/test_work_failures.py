"""Handlers that fail, refuse, hang and die: what becomes of their orders, and of their neighbours."""

import asyncio
import os
import sys
from collections import Counter
from typing import LiteralString

import aiormq
import psycopg
import pytest

from dev.sandbox.system import Counts
from tests import warm
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey.placing import DEADLY, LONG, REFUSED, all_are, place, worker_statuses
from tests.journey.trace import Trace, rows

ORDERS = 5000 if LONG else 600
DEADLY_ORDERS = 5 if LONG else 2
REDRIVEN = 2000 if LONG else 300

LETTERS: LiteralString = "SELECT order_id, kind, reason FROM dead_letters WHERE state = 'dead'"
# Each claim is a run of the handler. Of these, the ones after a failure of the order's own are its own affair.
RUNS: LiteralString = "SELECT avg(attempts - failures)::float8, max(failures) FROM orders"
EVENTS_OF_THE_END: LiteralString = """
    SELECT key FROM outbox WHERE routing_key IN ('order.done', 'order.failed')
"""


@pytest.mark.long
async def test_every_way_to_fail(start_system: StartSystem) -> None:
    """
    Whatever fails is tried again until it is done; what is refused and what kills its process fails with its reason,
    once, and nothing else does.
    """
    references: list[str | None] = [REFUSED if number % 100 == 50 else None for number in range(ORDERS)]
    for number in range(DEADLY_ORDERS):
        references[(number + 1) * ORDERS // (DEADLY_ORDERS + 2)] = DEADLY
    refused = references.count(REFUSED)
    settings = {
        "ORDERS_HANDLER": "tests.journey.work_handlers:mixed",
        "WORKER_CONCURRENCY": "100", "WORK_MAX_ATTEMPTS": "20", "WORK_TIMEOUT": "2",
    }  # fmt: skip
    system = start_system(apis=0, with_nginx=False, settings=settings)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        order_ids = await place(conn, references)

        failed = refused + DEADLY_ORDERS
        await eventually(lambda: all_are(conn, {"done": ORDERS - failed, "failed": failed}), 600 if LONG else 90)

        by_reference = dict(zip(order_ids, references, strict=True))
        letters = await rows(conn, LETTERS)
        assert Counter((by_reference[order_id], kind) for order_id, kind, _ in letters) == {  # type: ignore[index]
            (REFUSED, "refused"): refused, (DEADLY, "deadly"): DEADLY_ORDERS,
        }  # fmt: skip
        assert {reason for _, kind, reason in letters if kind == "deadly"} == {
            "the process that ran it alone exited with code 7, 2 times"
        }
        [(runs, failures)] = await rows(conn, RUNS)
        assert isinstance(runs, float)
        assert runs < 1.5
        assert failures, "no handler has failed: this run says nothing"
        assert set(Counter(key for (key,) in await rows(conn, EVENTS_OF_THE_END)).values()) == {1}
        assert await rows(conn, "SELECT (SELECT count(*) FROM retries), (SELECT count(*) FROM verdicts)") == [(0, 0)]
    assert system.process("worker-1").starts > 1, "the worker has never died: this run says nothing"
    assert [status.in_hand for status in await worker_statuses(system)] == [0]


async def test_redrive_after_the_handler_was_mended(start_system: StartSystem, trace: Trace) -> None:
    """
    Orders that a broken handler refused are brought back at a rate, and each has its effect once.
    """
    broken = trace.settings | {"ORDERS_HANDLER": "tests.journey.work_handlers:refuse"}
    system = start_system(apis=0, with_nginx=False, settings=broken)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        order_ids = await place(conn, [None] * REDRIVEN)
        await eventually(lambda: all_are(conn, {"failed": REDRIVEN}), 60)
        assert trace.count("effects") == {}

        system.change(trace.settings | {"ORDERS_HANDLER": "tests.journey.handlers:note_once"})
        system.scale(Counts(apis=0, relays=1, workers=1))
        redrive = ["-m", "orders.cli", "dead", "redrive", "--all", "--rate", "200"]
        environ = os.environ | system.urls_of("operator")
        done = await asyncio.to_thread(warm.run, [sys.executable, *redrive], env=environ)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"redriven: {REDRIVEN}\n"

        await eventually(lambda: all_are(conn, {"done": REDRIVEN}), 60)
        assert trace.count("effects") == dict.fromkeys(order_ids, 1)
        audit = "SELECT count(*), count(DISTINCT order_id), min(command) FROM dead_letter_audit"
        assert await rows(conn, audit) == [(REDRIVEN, REDRIVEN, "redrive")]
        assert await rows(conn, "SELECT DISTINCT version, redrives FROM orders") == [(6, 1)]


@pytest.mark.parametrize("body", [b"garbage", b'{"specversion":"1.0"}', b"x" * 200_000], ids=["bytes", "half", "large"])
async def test_garbage_in_the_work_queue(start_system: StartSystem, body: bytes) -> None:
    """
    What a stranger puts into the work queue ends in the table of dead letters, and the orders behind it are worked.
    """
    system = start_system(apis=0, with_nginx=False, settings={"ORDERS_HANDLER": "orders.handlers:do_nothing"})
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        connection = await aiormq.connect(system.amqp_url)
        async with connection:
            channel = await connection.channel()
            await channel.basic_publish(body, routing_key="orders.work")
        await place(conn, [None] * 10)

        await eventually(lambda: all_are(conn, {"done": 10}), 20)

        await eventually(lambda: letter_is(conn, len(body)), 20)


async def letter_is(conn: psycopg.AsyncConnection, size: int) -> bool:
    """Whether the one dead letter has this size, and belongs to no order."""
    assert await rows(conn, "SELECT size, order_id FROM dead_letters") == [(size, None)]
    return True
