"""An order and its event are written by one transaction, or neither is."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import msgspec
import psycopg
import pytest
from psycopg import AsyncConnection

from dev.sandbox.wire import Wire
from orders.database import orders_table, outbox_table, postgres
from orders.database.batcher import Batcher, Limits
from orders.database.place_orders import Placed, Placement, place_orders, placement_of
from orders.model import events
from orders.model.errors import InvalidOrder, KeyReused
from orders.model.order import Line, NewOrder
from orders.model.traceparent import continue_trace
from tests.eventually import eventually
from tests.orders.samples import counts, placement

Placing = Batcher[Placement, Placed]


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[AsyncConnection]:
    """A connection as the api makes it."""
    conn = await postgres.connect(database_url, "test")
    yield conn
    await postgres.close(conn)


async def test_order_and_event_are_written_together(conn: AsyncConnection) -> None:
    """
    Each order has one outbox row, addressed to the work queue, whose sealed body tells of it.
    """
    asked = [placement() for _ in range(3)]

    answers = await place_orders(conn, asked)

    assert answers == [Placed(each.order.order_id, each.answer) for each in asked]
    cursor = await conn.execute(
        "SELECT event_id, key, exchange, routing_key, required, content_type, headers, body, state FROM outbox"
    )
    rows = {row[0]: row[1:] for row in await cursor.fetchall()}
    assert rows == {
        each.event.event_id: (
            str(each.order.order_id), "orders", "order.placed", True, "application/cloudevents+json",
            {"traceparent": each.event.traceparent}, each.event.body, "pending",
        )
        for each in asked
    }  # fmt: skip
    envelope = events.open_envelope(asked[0].event.body)
    assert (envelope.id, envelope.type, envelope.subject) == (
        asked[0].event.event_id, "order.placed", str(asked[0].order.order_id),
    )  # fmt: skip
    assert (envelope.data.order_id, envelope.data.status, envelope.data.version) == (
        asked[0].order.order_id, "placed", 1,
    )  # fmt: skip


async def test_order_reads_back_as_it_was_answered(conn: AsyncConnection) -> None:
    """
    What a client is told with the 201 is what is stored, byte for byte.
    """
    asked = placement(key="a", reference="Tür 5, NO. 7/8")
    tutorial = placement_of(None, client="", traceparent=continue_trace(None))

    await place_orders(conn, [asked, tutorial])
    wanted = [orders_table.OrderLookup("", each.order.order_id) for each in (asked, tutorial)]
    stored = await orders_table.read_many(conn, wanted)

    assert [msgspec.json.encode(each) for each in stored] == [asked.answer, tutorial.answer]


async def test_outbox_that_refuses_takes_the_order_with_it(conn: AsyncConnection) -> None:
    """
    If the event cannot be written, the order is not either.
    """
    await conn.execute("ALTER TABLE outbox ADD CONSTRAINT no_events_today CHECK (octet_length(body) < 10) NOT VALID")

    with pytest.raises(psycopg.errors.CheckViolation):
        await place_orders(conn, [placement(key="a")])

    assert await counts(conn) == (0, 0, 0)


async def test_key_gives_the_same_order_again(conn: AsyncConnection) -> None:
    """
    A second request with the key and the body of the first gets the first one's answer, and writes nothing.
    """
    first, second = placement(key="a"), placement(key="a")

    await place_orders(conn, [first])
    await conn.execute("UPDATE orders SET status = 'cancelled', finished_at = now(), version = 2")
    again = await place_orders(conn, [second])

    assert again == [Placed(first.order.order_id, first.answer, replayed=True)]
    assert await counts(conn) == (1, 1, 1)


async def test_key_with_another_body_is_refused(conn: AsyncConnection) -> None:
    """
    A key that was used for another body is no licence to forget the new one.
    """
    await place_orders(conn, [placement(key="a")])

    assert [type(each) for each in await place_orders(conn, [placement(key="a", quantity=7)])] == [KeyReused]
    assert await counts(conn) == (1, 1, 1)


async def test_same_key_twice_in_one_batch(conn: AsyncConnection) -> None:
    """
    Of several requests with one key that meet in a batch, one is written, and each is answered.
    """
    twins = [placement(key="a"), placement(key="a"), placement(key="a", quantity=7)]

    *twin_answers, beside = await place_orders(conn, [*twins, placement()])

    assert {each.order_id for each in twin_answers if isinstance(each, Placed)} == {await order_of_key(conn)}
    assert KeyReused in {type(each) for each in twin_answers}
    assert len([each for each in twin_answers if isinstance(each, Placed) and not each.replayed]) == 1
    assert isinstance(beside, Placed)
    assert await counts(conn) == (2, 2, 1)


async def test_batch_that_is_run_again_writes_nothing(conn: AsyncConnection) -> None:
    """
    A batch whose outcome nobody knew is run again, and answered as if it had been run once.
    """
    batch = [placement(), placement(key="a"), placement(key="b")]

    once = await place_orders(conn, batch)
    again = await place_orders(conn, batch)

    assert once == again == [Placed(each.order.order_id, each.answer) for each in batch]
    assert await counts(conn) == (3, 3, 2)


async def order_of_key(conn: AsyncConnection) -> UUID:
    """The order of the one key there is."""
    row = await (await conn.execute("SELECT order_id FROM idempotency_keys")).fetchone()
    assert row is not None
    return UUID(str(row[0]))


async def is_waiting(conn: AsyncConnection) -> bool:
    """Somebody waits for a lock in this database."""
    cursor = await conn.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return await cursor.fetchone() is not None


async def test_key_waits_for_whoever_holds_it(conn: AsyncConnection, database_url: str) -> None:
    """
    While another transaction has the key and is not over, nobody is told anything; then the truth.
    """
    other = await psycopg.AsyncConnection.connect(database_url)
    holder, waiter = placement(key="a"), placement(key="a")
    async with other, Placing("test", database_url, place_orders, Limits(writers=2)) as placing:
        await place_orders(other, [holder])
        asking = [placing(waiter), placing(placement())]
        answers = asyncio.gather(*asking)
        await eventually(lambda: is_waiting(conn))
        assert not answers.done()
        await other.commit()
        first, beside = await answers

    assert first == Placed(holder.order.order_id, holder.answer, replayed=True)
    assert not beside.replayed
    assert await counts(conn) == (2, 2, 1)


async def test_answer_to_the_commit_is_lost(conn: AsyncConnection, database_url: str, wire: Wire) -> None:
    """
    The batch is committed and its answer gets lost: the client still hears 201 with that order, and there is one of it.
    """
    with_key, without = placement(key="a"), placement()
    async with Placing("test", wire.url(database_url), place_orders, Limits()) as placing:
        await placing(placement())  # so that the statement is prepared, and its next answer is the commit's
        for asked in (with_key, without):
            wire.swallow(b"SELECT 0\0")  # nothing was left out
            assert await placing(asked, 1) == Placed(asked.order.order_id, asked.answer)

    assert wire.swallowed == 2
    assert wire.accepted == 3
    assert await counts(conn) == (3, 3, 1)


async def test_partition_is_missing(conn: AsyncConnection, database_url: str) -> None:
    """
    An id beyond the last partition costs the client nothing: the writer makes a partition and goes on.
    """
    await conn.execute("SELECT setval('outbox_id_seq', 20000000)")
    async with Placing("test", database_url, place_orders, Limits(), mend=outbox_table.add_partitions) as placing:
        asked = placement(key="a")

        assert await placing(asked) == Placed(asked.order.order_id, asked.answer)
    assert await counts(conn) == (1, 1, 1)


def test_total_that_does_not_fit() -> None:
    """
    A total beyond 64 bits is refused before anything is written; the largest one fits.
    """
    most = 2**63 - 1

    def total(*prices: int) -> int:
        lines = [Line(sku="a", quantity=1, unit_price_minor=price) for price in prices]
        return NewOrder(customer_id="a", currency="GBP", lines=lines).total_minor()

    assert total(most) == total(most - 1, 1) == most
    with pytest.raises(InvalidOrder) as error:
        total(most, 1)
    assert error.value.field == "lines"


async def test_ids_ascend() -> None:
    """
    Orders that are made one after the other sort so, also within a millisecond.
    """
    ids: list[UUID] = [placement().order.order_id for _ in range(1000)]

    assert ids == sorted(set(ids))
    assert {each.version for each in ids} == {7}
