"""D: what happens to PostgreSQL and to those who talk to it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from dev.chaos.act import Act, kind
from dev.chaos.process_faults import until

POSTGRES = ("postgres",)
PG_EDGES = ("api-pg", "relay-pg", "worker-pg")
BACK_SECONDS = 60.0

END_SESSIONS: LiteralString = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
    AND backend_type = 'client backend' AND application_name <> 'chaos'
"""


@contextlib.asynccontextmanager
async def operator(act: Act, name: str = "chaos") -> AsyncIterator[AsyncConnection]:
    """A connection of somebody who may do anything, past every wire."""
    conn = await AsyncConnection.connect(
        act.stage.servers.database_url,
        autocommit=True,
        connect_timeout=5,
        application_name=name,
        options="-c default_transaction_read_only=off",
    )
    try:
        yield conn
    finally:
        with contextlib.suppress(psycopg.Error):
            await conn.close()


@kind("D1", "PostgreSQL killed", POSTGRES, weight=1.2, seconds=(0.0, 3.0))
async def kill(act: Act) -> None:
    """SIGKILL to all of its processes; it recovers from its log."""
    act.fired(f"away for {act.seconds:.1f} s and its recovery")
    await asyncio.to_thread(act.stage.servers.postgres.kill)
    await asyncio.sleep(act.seconds)
    await back(act)


@kind("D2", "PostgreSQL restarted, fast", POSTGRES, weight=1.2, seconds=(0.0, 2.0))
async def restart(act: Act) -> None:
    """Sessions are ended, a checkpoint is written, it comes back."""
    act.fired()
    await asyncio.to_thread(act.stage.servers.postgres.stop)
    await asyncio.sleep(act.seconds)
    await back(act)


@kind("D3", "sessions terminated, one after another", POSTGRES, weight=2, seconds=(2.0, 5.0), keeps=lambda p: ())
async def terminate_sessions(act: Act) -> None:
    """pg_terminate_backend for a random session, five times a second; it begins when the server is there."""
    ended = 0
    start = time.monotonic()
    while time.monotonic() < start + (act.seconds if ended else BACK_SECONDS):
        with contextlib.suppress(psycopg.OperationalError):
            async with operator(act) as conn:
                cursor = await conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                    "AND backend_type = 'client backend' AND application_name <> 'chaos' ORDER BY random() LIMIT 1"
                )
                ended += cursor.rowcount
                if ended:
                    act.fired(f"{ended} sessions")
        await asyncio.sleep(0.2)
    act.healed()


@kind("D4", "the answer to a commit is lost", PG_EDGES, weight=4, seconds=(40.0, 40.0), keeps=lambda p: (f"wires {p}",))
async def lose_commits(act: Act) -> None:
    """The server has committed, its answer never arrives, the connection is reset."""
    # Whichever process commits next: one of several relays may have nothing to carry.
    wires = act.stage.wires[act.place]

    def swallowed() -> int:
        return sum(wire.swallowed for wire in wires)

    before = swallowed()
    # The tag of the statement that commits: an api's placement and a worker's batch are one statement, a relay says so.
    for wire in wires:
        wire.swallow(b"COMMIT" if act.place == "relay-pg" else b"SELECT ")
    try:
        await until(lambda: swallowed() > before, act.seconds, f"nothing was committed over {act.place}")
    finally:
        for wire in wires:
            wire.swallow(None)
    act.fired("an answer")
    act.healed()


@kind("D5", "a hundred idle connections", POSTGRES, seconds=(2.0, 6.0), keeps=lambda p: ("connections",))
async def crowd(act: Act) -> None:
    """Somebody else has opened connections and keeps them."""
    await occupy(act, 100)


@kind("D6", "max_connections reached", POSTGRES, weight=0.8, seconds=(2.0, 5.0), keeps=lambda p: ("connections",))
async def fill(act: Act) -> None:
    """There is no connection left for anybody: whoever loses his is refused."""
    await occupy(act, 250)


async def occupy(act: Act, most: int) -> None:
    """Open connections up to so many, or as many as there are, and keep them for a while."""
    async with contextlib.AsyncExitStack() as stack:
        opened = 0
        end = time.monotonic() + BACK_SECONDS
        while not opened and time.monotonic() < end:  # it may be away at this moment
            with contextlib.suppress(psycopg.OperationalError):
                for _ in range(most):
                    await stack.enter_async_context(operator(act))
                    opened += 1
            await asyncio.sleep(0.1)
        assert opened, "the database took no connection at all"
        act.fired(f"{opened} connections")
        await asyncio.sleep(act.seconds)
    act.healed()


@kind("D7", "demoted to read-only", POSTGRES, weight=1, seconds=(1.0, 4.0), keeps=lambda p: ("settings",))
async def demote(act: Act) -> None:
    """Every session finds itself read-only, and new ones that want to write are not let in."""
    await insist(act, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    await insist(act, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
    act.healed()


@kind("D23", "a synchronous standby is away", POSTGRES, weight=1, seconds=(2.0, 8.0), keeps=lambda p: ("settings",))
async def lose_standby(act: Act) -> None:
    """Every commit waits, and so do the backends of those who have given it up; people connect and set it right."""
    await insist(act, "ALTER SYSTEM SET synchronous_standby_names = 'ghost'", "SELECT pg_reload_conf()")
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    await insist(act, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
    act.healed()


@kind("D8", "ACCESS EXCLUSIVE on the outbox", POSTGRES, seconds=(2.0, 8.0), keeps=lambda p: ("locks",))
async def lock_outbox(act: Act) -> None:
    """Somebody holds the table: nobody reads it, nobody writes it."""
    await hold(act, "LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")


@kind("D22", "a stranger locks an order", POSTGRES, weight=2, seconds=(2.0, 8.0), keeps=lambda p: ())
async def lock_order(act: Act) -> None:
    """An open transaction holds the row of an order that has not ended: the others go on."""
    await hold(
        act,
        "SELECT FROM orders WHERE order_id = (SELECT order_id FROM orders WHERE status IN ('placed', 'processing') "
        "ORDER BY order_id DESC LIMIT 1) FOR UPDATE",
    )


@kind("D10", "the xmin horizon held by a reader", POSTGRES, seconds=(5.0, 20.0), keeps=lambda p: ())
async def hold_horizon(act: Act) -> None:
    """A report in a REPEATABLE READ transaction."""
    await hold(act, "SELECT count(*) FROM orders")


@kind("D11", "a writer that does not commit", POSTGRES, seconds=(3.0, 12.0), keeps=lambda p: ())
async def hold_mark(act: Act) -> None:
    """An open transaction has written to the outbox's table: the low-water mark may not pass it."""
    await hold(act, "LOCK TABLE outbox IN ROW EXCLUSIVE MODE")


@kind(
    "D15",
    "statements are ended with 57014, as statement_timeout does",
    POSTGRES,
    weight=1.5,
    seconds=(1.0, 3.0),
    keeps=lambda p: (),
)
async def cancel_statements(act: Act) -> None:
    """Whatever runs at some moments. Our sessions set their own statement_timeout, so an operator does it."""
    ended = 0
    start = time.monotonic()
    while time.monotonic() < start + (act.seconds if ended else BACK_SECONDS):
        with contextlib.suppress(psycopg.OperationalError):
            async with operator(act) as conn:
                for _ in range(20):
                    # What a handler's own statements run into is a failure of the handler.
                    cursor = await conn.execute(
                        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE state = 'active' "
                        "AND pid <> pg_backend_pid() AND application_name NOT IN ('chaos', 'orders-handler')"
                    )
                    ended += cursor.rowcount
                    if ended:
                        act.fired(f"{ended} statements")
                    await asyncio.sleep(0.01)
    act.healed()


LACKED = 9  # orders
# What a copy lacks of orders that are done and whose messages are acked: claim and end, the end of a worker that lives,
# or that of one that is gone. The place of the sweep is from the same moment as the orders.
#
# The number of an attempt stays: to the checkers a number that comes again looks like two handlers of one claim.
LACK: LiteralString = """
    WITH chosen AS MATERIALIZED (
        SELECT o.order_id, abs(hashtext(o.order_id::text)) %% 3 AS lacks, placed.id AS row_id, ended.id AS end_id
        FROM orders o
        JOIN outbox placed ON placed.key = o.order_id::text AND placed.routing_key = 'order.placed'
        JOIN outbox ended ON ended.key = o.order_id::text AND ended.routing_key = 'order.done' AND ended.state = 'sent'
        WHERE o.status = 'done' AND o.version = 3 AND ended.settled_at < clock_timestamp() - interval '1 second'
        ORDER BY ended.id DESC LIMIT %s FOR NO KEY UPDATE OF o SKIP LOCKED
    ), undone AS (
        UPDATE orders o
        SET status = CASE lacks WHEN 0 THEN 'placed' ELSE 'processing' END, version = least(lacks, 1) + 1,
            worker = CASE lacks WHEN 0 THEN NULL WHEN 1 THEN coalesce((
                SELECT objid::integer FROM pg_locks WHERE classid = 'orders'::regclass::oid AND objsubid = 2 LIMIT 1
            ), 4711) ELSE 4711 END,
            finished_at = NULL
        FROM chosen WHERE o.order_id = chosen.order_id
    ), ends AS (
        DELETE FROM outbox WHERE id IN (SELECT end_id FROM chosen)
    ), archived AS (
        DELETE FROM chaos_archive WHERE id IN (SELECT end_id FROM chosen)
    ), effects AS (
        DELETE FROM chaos_effects WHERE order_id IN (SELECT order_id::text FROM chosen)
    ), history AS (
        UPDATE sweep SET timeline = timeline - 1, walked = least(walked, (SELECT min(row_id) - 1 FROM chosen))
    )
    SELECT coalesce(array_agg(order_id), '{}') FROM chosen
"""
UNENDED: LiteralString = "SELECT count(*) FROM orders WHERE order_id = ANY(%s) AND status IN ('placed', 'processing')"
SWEEP_SECONDS = 200.0  # a sweep waits until the work queue is empty


# Nobody runs retention meanwhile (O8): with an outbox row that is dropped minutes after it was sent, nothing is left to
# send again.
@kind("D24", "a stale copy is promoted", POSTGRES, weight=1, keeps=lambda p: ("outbox",))
async def promote(act: Act) -> None:
    """The newest claims and ends are undone, while their messages are acked and their events were heard."""
    lacked: list[UUID] = []
    end = time.monotonic() + BACK_SECONDS
    while not lacked and time.monotonic() < end:
        with contextlib.suppress(psycopg.OperationalError):
            async with operator(act) as conn, conn.transaction():
                [lacked] = await (await conn.execute(LACK, [LACKED])).fetchone() or ([],)
                await conn.execute(END_SESSIONS)
        await asyncio.sleep(0.2)
    assert lacked, "no order was done"
    act.fired(f"{len(lacked)} orders")
    end = time.monotonic() + SWEEP_SECONDS
    while await ask(act, UNENDED, lacked) != (0,):
        await asyncio.sleep(0.5)
        if time.monotonic() > end:
            break
    act.healed()


@kind(
    "D25",
    "all roles get a foreign client_encoding and datestyle",
    POSTGRES,
    weight=1,
    seconds=(3.0, 10.0),
    keeps=lambda p: ("settings",),
)
async def change_forms(act: Act) -> None:
    """Every session ends, and each new one would send text and times in forms that nobody expects."""
    await insist(
        act,
        "ALTER ROLE ALL SET client_encoding = 'LATIN1'",
        "ALTER ROLE ALL SET datestyle = 'SQL, DMY'",
        END_SESSIONS,
    )
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    await insist(act, "ALTER ROLE ALL RESET client_encoding", "ALTER ROLE ALL RESET datestyle", END_SESSIONS)
    act.healed()


@kind("D21", "PostgreSQL stopped by SIGSTOP", POSTGRES, weight=1.2, seconds=(1.0, 8.0))
async def pause(act: Act) -> None:
    """Its connections stay open, and nobody answers."""
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.to_thread(act.stage.servers.postgres.pause)
    try:
        await asyncio.sleep(act.seconds)
    finally:
        await asyncio.to_thread(act.stage.servers.postgres.resume)
    act.healed()


async def hold(act: Act, statement: str) -> None:
    """Run it in a transaction that stays open."""
    for _ in range(20):
        with contextlib.suppress(psycopg.OperationalError):
            async with operator(act) as conn:
                await conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                await conn.execute("SET LOCAL lock_timeout = '20s'")
                await conn.execute(statement.encode())
                act.fired(f"{act.seconds:.1f} s")
                await asyncio.sleep(act.seconds)
                break
        await asyncio.sleep(0.5)
    act.healed()


async def insist(act: Act, *statements: str) -> None:
    """Run them, over as many connections as it takes."""
    end = time.monotonic() + BACK_SECONDS
    while True:
        try:
            async with operator(act) as conn:
                for statement in statements:
                    await conn.execute(statement.encode())
                return
        except psycopg.OperationalError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.2)


async def ask(act: Act, statement: LiteralString, *values: object) -> tuple[Any, ...]:
    """Return the row of a statement, over as many connections as it takes."""
    end = time.monotonic() + BACK_SECONDS
    while True:
        try:
            async with operator(act) as conn:
                row = await (await conn.execute(statement, values)).fetchone()
                assert row is not None, statement
                return row
        except psycopg.OperationalError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.2)


async def back(act: Act) -> None:
    """Start it, and say when it takes connections again."""
    await asyncio.to_thread(act.stage.servers.postgres.start)
    act.healed()
