import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg import AsyncConnection

from orders.database import orders_table
from orders.database.cancel_orders import Cancellation, Cancelled, cancel_orders
from orders.database.claim_orders import Claimed, Settled, claim_orders
from orders.database.orders_table import OrderLookup
from orders.database.row_locks import Busy
from orders.model.errors import KeyReused, OrderNotFound, TooLate
from orders.model.order import Order
from tests.eventually import eventually
from tests.orders.conftest import NEW, Api
from tests.orders.row_locks import lock
from tests.orders.work_samples import work_message_again

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def wish(order: dict[str, Any], **changes: Any) -> Cancellation:
    given = {"order_id": UUID(order["order_id"]), "client": "", "traceparent": TRACE, **changes}
    return Cancellation(**given)


async def events_of(conn: AsyncConnection, order: dict[str, Any]) -> list[dict[str, Any]]:
    cursor = await conn.execute("SELECT body FROM outbox WHERE key = %s ORDER BY id", [order["order_id"]])
    return [msgspec.json.decode(row[0]) for row in await cursor.fetchall()]


async def test_cancel(api: Api, conn: AsyncConnection) -> None:
    """
    A placed order is cancelled with one event, and again with none.
    """
    placed = await api.place()
    path = f"/orders/{placed['order_id']}/cancel"
    first, second = await api.client.post(path), await api.client.post(path)

    assert (first.status_code, first.json()["status"], first.json()["version"]) == (200, "cancelled", 2)
    assert first.content == second.content == (await api.client.get(f"/orders/{placed['order_id']}")).content
    events = await events_of(conn, placed)
    assert [event["type"] for event in events] == ["order.placed", "order.cancelled"]
    assert {"order_id": placed["order_id"], "status": "cancelled", "version": 2}.items() <= events[1]["data"].items()


@pytest.mark.parametrize("order_id", ["00000000-0000-0000-0000-000000000000", "nobody"])
async def test_no_such_order(api: Api, order_id: str) -> None:
    """
    What is not there cannot be cancelled.
    """
    assert (await api.client.post(f"/orders/{order_id}/cancel")).status_code == 404


async def test_too_late(api: Api, conn: AsyncConnection) -> None:
    """
    An order in a worker's hands is not cancelled any more, and nothing tells that it was.
    """
    placed = await api.place()
    await claim_orders(conn, 1, [await work_message_again(conn, UUID(placed["order_id"]))])

    answer = await api.client.post(f"/orders/{placed['order_id']}/cancel", headers={"Idempotency-Key": "k"})

    assert (answer.status_code, answer.json()["detail"]) == (409, "The order is processing already.")
    assert len(await events_of(conn, placed)) == 1
    cursor = await conn.execute("SELECT count(*) FROM idempotency_keys")
    assert await cursor.fetchone() == (0,)


async def test_key(api: Api, conn: AsyncConnection) -> None:
    """
    A key's repeat gets the first answer's bytes; with another order it is refused, and that order stays as it is.
    """
    first, second = await api.place(), await api.place()
    headers = {"Idempotency-Key": "k"}
    one = await api.client.post(f"/orders/{first['order_id']}/cancel", headers=headers)
    two = await api.client.post(f"/orders/{first['order_id']}/cancel", headers=headers)
    other = await api.client.post(f"/orders/{second['order_id']}/cancel", headers=headers)

    assert (one.status_code, one.headers.get("idempotency-replayed")) == (200, None)
    assert (200, "true", one.content) == (two.status_code, two.headers.get("idempotency-replayed"), two.content)
    assert other.status_code == 422
    assert (await api.client.get(f"/orders/{second['order_id']}")).json()["status"] == "placed"


async def test_the_keys_of_placing_and_cancelling_are_apart(api: Api) -> None:
    """
    A key's scope is its client and operation.
    """
    headers = {"Idempotency-Key": "k"}
    placed = (await api.client.post("/orders/", headers=headers)).status_code
    order = await api.place()
    assert placed != 201
    assert (await api.client.post(f"/orders/{order['order_id']}/cancel", headers=headers)).status_code == 200


async def test_one_batch(api: Api, conn: AsyncConnection) -> None:
    """
    The same order twice in a batch, with keys and without, is cancelled once; a strange one harms nobody.
    """
    order = await api.place()
    wishes = [
        wish(order), wish(order, key="a"), wish(order, client="somebody else"), wish(order), wish(order, key="b")
    ]  # fmt: skip
    answers = await cancel_orders(conn, wishes)

    assert [Cancelled, Cancelled, OrderNotFound, Cancelled, Cancelled] == [type(each) for each in answers]
    assert len({each.answer for each in answers if isinstance(each, Cancelled)}) == 1
    assert len(await events_of(conn, order)) == 2


async def test_one_key_for_two_orders_at_once(api: Api, conn: AsyncConnection) -> None:
    """
    Of two orders with one key in a batch one is cancelled, and the other stays as it is.
    """
    orders = [await api.place(), await api.place()]
    answers = await cancel_orders(conn, [wish(order, key="k") for order in orders])

    assert [Cancelled, KeyReused] == sorted((type(each) for each in answers), key=lambda kind: kind.__name__)
    told = [len(await events_of(conn, order)) for order in orders]
    assert [1 + isinstance(each, Cancelled) for each in answers] == told


async def until_free(run: Callable[[], Awaitable[Sequence[Any]]]) -> Sequence[Any]:
    """Run a transition of one order again for as long as the other one has its row."""
    while isinstance((answers := await run())[0], Busy):
        pass
    return answers


async def test_race_with_a_claim(api: Api, conn: AsyncConnection, database_url: str) -> None:
    """
    Of a cancel and a worker's claim at the same moment exactly one wins, and the other one knows it.
    """
    won = {"cancel": 0, "claim": 0}
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
        for turn in range(60):
            order = await api.place()
            asked = wish(order, key=f"k{turn}" if turn % 2 else None)
            message = await work_message_again(other, UUID(order["order_id"]))
            cancel = until_free(partial(cancel_orders, conn, [asked]))
            claim = until_free(partial(claim_orders, other, 1, [message]))
            both: Any = asyncio.gather(cancel, claim) if turn % 3 else asyncio.gather(claim, cancel)
            results = [each[0] for each in await both]
            cancelled = next(each for each in results if isinstance(each, Cancelled | TooLate))
            claimed = next(each for each in results if isinstance(each, Claimed | Settled))
            assert isinstance(cancelled, Cancelled) == isinstance(claimed, Settled)
            assert (2 if isinstance(cancelled, Cancelled) else 1) == len(await events_of(conn, order))
            won["cancel" if isinstance(cancelled, Cancelled) else "claim"] += 1

    assert sum(won.values()) == 60


async def test_a_cancel_waits_for_a_claim_that_is_open(api: Api, conn: AsyncConnection, database_url: str) -> None:
    """
    A claim that is not committed yet is waited for, not overtaken: the order is busy until then.
    """
    order = await api.place()
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await claim_orders(other, 1, [await work_message_again(other, UUID(order["order_id"]))])
        assert await cancel_orders(conn, [wish(order, key="k")] * 2) == [Busy(UUID(order["order_id"]))] * 2
        await other.commit()

    assert [TooLate] == [type(each) for each in await cancel_orders(conn, [wish(order, key="k")])]
    cursor = await conn.execute("SELECT count(*) FROM idempotency_keys")
    assert await cursor.fetchone() == (0,)


async def test_a_claim_comes_just_before_the_cancel(
    api: Api, conn: AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A claim that is committed between the look at the order and its cancel wins, and the cancel says so.
    """
    order = await api.place()
    message = await work_message_again(conn, UUID(order["order_id"]))
    read_many = orders_table.read_many

    async def read_then_claim(conn: AsyncConnection, lookups: Sequence[OrderLookup]) -> list[Order | OrderNotFound]:
        found = await read_many(conn, lookups)
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
            await claim_orders(other, 1, [message])
        return found

    monkeypatch.setattr(orders_table, "read_many", read_then_claim)

    assert [TooLate] == [type(each) for each in await cancel_orders(conn, [wish(order, key="k")])]
    assert len(await events_of(conn, order)) == 1
    cursor = await conn.execute("SELECT count(*) FROM idempotency_keys")
    assert await cursor.fetchone() == (0,)


def is_set_aside() -> bool:
    """Whether a cancel has met its order's lock, and waits for its next try."""
    return bool(REGISTRY.get_sample_value("orders_locked", {"statement": "cancel"}))


async def test_cancels_of_a_locked_order_harm_no_placement(api: Api, database_url: str) -> None:
    """
    While a stranger holds an order locked, its cancels get 503 in time; every placement is taken, as are other cancels.
    """
    guilty, other = await api.place(), await api.place()
    async with await psycopg.AsyncConnection.connect(database_url) as stranger:
        await lock(stranger, [UUID(guilty["order_id"])])
        cancels = [asyncio.create_task(api.client.post(f"/orders/{guilty['order_id']}/cancel")) for _ in range(6)]
        await eventually(is_set_aside)
        placed, cancelled = [], await api.client.post(f"/orders/{other['order_id']}/cancel")
        while not all(each.done() for each in cancels):
            placed.append((await api.client.post("/orders", json=NEW)).status_code)
            await asyncio.sleep(0.02)
        answers = {(each.status_code, "retry-after" in each.headers) for each in await asyncio.gather(*cancels)}
        assert answers == {(503, True)}
        assert set(placed) == {201}
        assert cancelled.status_code == 200

        waiting = asyncio.create_task(api.client.post(f"/orders/{guilty['order_id']}/cancel"))
        await eventually(is_set_aside)
        await stranger.rollback()
        assert (await waiting).status_code == 200
