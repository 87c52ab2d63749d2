"""Which orders the sweep finds, and which of them nothing carries."""

import secrets
from collections.abc import Sequence
from uuid import UUID

import pytest
from psycopg import AsyncConnection

from orders.database import stragglers_table
from orders.database.place_orders import Placement
from orders.database.postpone_orders import Postpone, postpone_orders
from orders.database.stragglers_table import History, Place, Stranded
from orders.model.traceparent import continue_trace
from tests.orders.work_samples import WORKER, claim, fail, place, rows, work_message

ALL = 10**9
LISTED = "SELECT order_id FROM stragglers ORDER BY row_id"


async def send_all(conn: AsyncConnection, seconds: int = 60) -> None:
    """Do as a relay that has published everything, so many seconds ago."""
    await conn.execute(
        "UPDATE outbox SET state = 'sent', settled_at = clock_timestamp() - make_interval(secs => %s) "
        "WHERE state = 'pending'",
        [seconds],
    )
    await conn.execute("UPDATE outbox_mark SET mark = (SELECT last_value FROM outbox_id_seq)")


async def walk(conn: AsyncConnection, slice_rows: int = 100) -> int | None:
    """Walk as far as it goes, and list what is due at once."""
    reached = None
    while True:
        step = await stragglers_table.walk(
            conn, "orders.work", await stragglers_table.look(conn, 600), slice_rows, age_seconds=30, wait_seconds=0
        )
        if step is None:
            return reached
        reached = step


async def judge(conn: AsyncConnection) -> list[Stranded]:
    return await stragglers_table.judge(conn, 100, wait_seconds=0, pause_seconds=60, longest_seconds=3600)


def ids(placed: Sequence[Placement]) -> list[tuple[UUID]]:
    return [(each.order.order_id,) for each in placed]


@pytest.mark.parametrize("slice_rows", [1, 2, 100])
async def test_orders_that_have_not_ended_are_listed(conn: AsyncConnection, slice_rows: int) -> None:
    """
    A walk in slices lists each order that is placed or processing, once, and ends at the mark.
    """
    placed = await place(conn, 4)
    await fail(conn, await claim(conn, placed[:1]))
    await claim(conn, placed[1:2])
    await send_all(conn)

    assert await walk(conn, slice_rows) == 5

    assert await rows(conn, LISTED) == ids(placed[1:])
    assert await walk(conn, slice_rows) is None


async def test_what_is_young_or_above_the_mark_comes_later(conn: AsyncConnection) -> None:
    """
    The walk stops in front of a row that was sent a moment ago, and never passes the mark.
    """
    first = await place(conn)
    await send_all(conn)
    second = await place(conn)
    assert await walk(conn) == 1
    assert await rows(conn, LISTED) == ids(first)

    await send_all(conn, seconds=1)
    assert await walk(conn) is None

    await conn.execute("UPDATE outbox SET settled_at = settled_at - interval '1 minute'")
    assert await walk(conn) == 2
    assert await rows(conn, LISTED) == ids([*first, *second])


async def test_what_is_carried_otherwise_is_not_listed(conn: AsyncConnection) -> None:
    """
    Neither an order that waits for its retry is listed, nor one whose message an operator skipped, nor another's row.
    """
    waiting, skipped = await place(conn), await place(conn)
    [claimed] = await claim(conn, waiting)
    await postpone_orders(
        conn, [Postpone(claimed, work_message(waiting[0]), 600, waiting[0].event.body, continue_trace(None))]
    )
    await conn.execute(
        "UPDATE outbox SET state = 'skipped', settled_at = now() WHERE key = %s", [str(ids(skipped)[0][0])]
    )
    await conn.execute("UPDATE outbox SET settled_at = settled_at - interval '1 minute'")
    await conn.execute(
        "INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, body) "
        "VALUES (gen_random_uuid(), 'no uuid', 'orders', 'order.placed', true, 'text/plain', '')"
    )
    await send_all(conn)

    assert await walk(conn) == 3

    assert await rows(conn, LISTED) == []


async def test_rows_that_retention_dropped(conn: AsyncConnection) -> None:
    """
    Where the rows are gone, the walk goes on behind them.
    """
    await place(conn, 3)
    await send_all(conn)
    await conn.execute("DELETE FROM outbox")

    assert await walk(conn) == 3


async def test_what_nothing_carries(conn: AsyncConnection) -> None:
    """
    An order is stranded if it is placed, or its worker is gone; not if its worker lives, or its message is parked.
    """
    placed, gone, alive, parked = [(await place(conn))[0] for _ in range(4)]
    await conn.execute("SELECT pg_advisory_lock('orders'::regclass::oid::integer, %s)", [WORKER])
    await claim(conn, [alive], WORKER)
    await claim(conn, [gone], WORKER + 1)
    await send_all(conn)
    await walk(conn)
    await conn.execute(
        "INSERT INTO outbox_parked SELECT id, shard, key, exchange, routing_key FROM outbox WHERE key = %s",
        [str(parked.order.order_id)],
    )

    found = await judge(conn)

    assert [(each.order_id, each.status, each.version) for each in found] == [
        (placed.order.order_id, "placed", 1), (gone.order.order_id, "processing", 2)
    ]  # fmt: skip
    assert await judge(conn) == [], "each of them once, then after a pause"
    assert await rows(conn, "SELECT count(*) FROM stragglers") == [(4,)]


async def test_pauses_double(conn: AsyncConnection) -> None:
    """
    An order that is brought back in vain is due again after a minute, then two, and at most an hour.
    """
    await place(conn)
    await send_all(conn)
    await walk(conn)
    pauses = []
    for _ in range(8):
        assert len(await judge(conn)) == 1
        [[seconds]] = await rows(conn, "SELECT round(extract(epoch FROM due_at - clock_timestamp())) FROM stragglers")
        pauses.append(int(str(seconds)))
        await conn.execute("UPDATE stragglers SET due_at = clock_timestamp()")

    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert (await stragglers_table.left(conn, 60)).brought_back == 8


async def test_what_has_ended_is_forgotten(conn: AsyncConnection) -> None:
    """
    A straggler that ends leaves the list, and so does one that waits for its retry or was purged.
    """
    ended, waiting, purged = [(await place(conn))[0] for _ in range(3)]
    await send_all(conn)
    await walk(conn)
    await fail(conn, await claim(conn, [ended]))
    [claimed] = await claim(conn, [waiting])
    await postpone_orders(
        conn, [Postpone(claimed, work_message(waiting), 600, waiting.event.body, continue_trace(None))]
    )
    await conn.execute("DELETE FROM orders WHERE order_id = %s", [purged.order.order_id])

    assert await judge(conn) == []

    assert await rows(conn, LISTED) == []


async def test_a_worker_keeps_what_it_has_in_hand(conn: AsyncConnection) -> None:
    """
    A worker puts off the orders in its hands, and lets go of an older claim of its own on any other.
    """
    in_hand, lost, young, others = [(await place(conn))[0] for _ in range(4)]
    await claim(conn, [in_hand, lost])
    await claim(conn, [others], WORKER + 1)
    await conn.execute("UPDATE orders SET updated_at = updated_at - interval '1 minute'")
    await claim(conn, [young])
    await send_all(conn)
    await walk(conn)

    let_go = await stragglers_table.keep_in_hand(
        conn, WORKER, [in_hand.order.order_id], wait_seconds=600, age_seconds=30
    )

    assert let_go == 1
    assert await rows(conn, "SELECT order_id FROM orders WHERE worker = 0") == ids([lost])
    assert await rows(conn, "SELECT order_id FROM stragglers WHERE due_at > now() + interval '9 minutes'") == ids(
        [in_hand]
    )


async def test_the_history_of_the_server_is_remembered(conn: AsyncConnection) -> None:
    """
    The first look only remembers; a change of the timeline or of the system is noticed once, and by everybody lately.
    """
    now = await stragglers_table.history(conn)
    assert now.timeline >= 1
    await stragglers_table.note_history(conn, now)
    assert await stragglers_table.changed(conn, 3600) is None

    promoted = History(now.system_id, now.timeline + 1)
    assert await stragglers_table.note_history(conn, promoted)
    assert not await stragglers_table.note_history(conn, promoted)

    changed = await stragglers_table.changed(conn, 3600)
    assert changed is not None
    assert changed.timeline == promoted.timeline
    assert await stragglers_table.look(conn, 600) == Place(0, 0, True, False)
    assert await stragglers_table.note_history(conn, History(now.system_id + 1, promoted.timeline))


async def test_any_role_may_read_the_history(conn: AsyncConnection) -> None:
    """
    The timeline needs no superuser, and no grant.
    """
    role = f"plain_{secrets.token_hex(4)}"
    now = await stragglers_table.history(conn)
    async with conn.transaction(force_rollback=True):
        await conn.execute(f"CREATE ROLE {role}".encode())
        await conn.execute(f"SET LOCAL ROLE {role}".encode())

        assert await stragglers_table.history(conn) == now
