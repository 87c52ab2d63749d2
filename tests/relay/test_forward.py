"""The loop on real servers: what is sent, what waits, and who waits with it."""

import asyncio
import uuid

import pytest
from psycopg import AsyncConnection

from relay import routes
from relay.forward import Forwarder
from relay.guard import Guard
from relay.parallel_claims import ParallelClaims
from relay.publisher import Publisher
from relay.settings import Settings
from relay.state import RelayState
from tests.eventually import eventually
from tests.relay.conftest import StartRelay
from tests.relay.service import (
    RelayProcess,
    all_settled,
    append,
    append_many,
    becomes,
    broker,
    keys_by_event,
    operator,
    recording,
    state_of,
    states,
)


async def test_a_row_becomes_a_message(conn: AsyncConnection, topology: str, start_relay: StartRelay) -> None:
    """
    A row arrives as a persistent message with its id, type, headers and body untouched, and is marked sent.
    """
    relay = start_relay()
    event_id = uuid.uuid4()
    row = await append(conn, body=b'{"a":1}', headers='{"traceparent":"00-aa-bb-01"}', event_id=event_id)
    async with recording(topology) as recorder:
        await eventually(lambda: recorder.messages, 20)

    (message,) = recorder.messages
    properties = message.header.properties
    assert message.body == b'{"a":1}'
    assert (properties.message_id, properties.delivery_mode) == (str(event_id), 2)
    assert properties.headers == {"traceparent": "00-aa-bb-01"}
    await becomes("sent", lambda: state_of(conn, row))
    assert (await relay.status())["published"] == 1


async def test_order_within_keys(conn: AsyncConnection, topology: str, start_relay: StartRelay) -> None:
    """
    Two relays share the work, and each key's events arrive in order.
    """
    relays = [start_relay(batch_rows=50), start_relay(batch_rows=50)]
    for relay in relays:
        await relay.ready()
        await becomes(2, lambda relay=relay: relay.says("relays"))  # type: ignore[misc]  # mypy knows no such default
    await append_many(conn, 3000, keys=30)
    async with recording(topology) as recorder:
        await eventually(lambda: len(recorder.messages) >= 3000, 60)
    await becomes(True, lambda: all_settled(conn))

    assert await states(conn) == {"sent": 3000}
    assert sorted(recorder.bodies()) == sorted(str(n // 30).encode() for n in range(3000))
    arrived = recorder.numbers(await keys_by_event(conn))
    assert all(numbers == list(range(100)) for numbers in arrived.values())

    async def published() -> list[int]:
        return [(await relay.status())["published"] for relay in relays]

    assert sum(await published()) == 3000

    async def both_take_part() -> bool:
        await append_many(conn, 300, keys=30)  # one of them may have been quick enough to take all there was
        return min(await published()) > 0

    await eventually(both_take_part, 30)


async def test_unrouted(conn: AsyncConnection, start_relay: StartRelay) -> None:
    """
    A row that need not reach a queue and finds none is unrouted, and no later row waits for it.
    """
    relay = start_relay()
    row = await append(conn, routing_key="order.done", required=False)
    later = await append(conn)

    await becomes("sent", lambda: state_of(conn, later), 20)

    assert await state_of(conn, row) == "unrouted"
    assert await relay.metric("relay_unrouted_total") == 1


async def test_a_returned_row_waits_for_its_binding(
    conn: AsyncConnection, topology: str, start_relay: StartRelay
) -> None:
    """
    A required row that comes back is a route failure: it is tried until the binding is there, its key waits behind it,
    other routes go on, and nobody lends a hand.
    """
    relay = start_relay(probe_seconds=0.3)
    async with broker(topology) as channel:
        await channel.queue_unbind("orders.work", "orders", "order.placed")
        lost = [await append(conn, "a", b"1"), await append(conn, "b", b"1")]
        behind = await append(conn, "a", b"2", routing_key="order.redriven")
        other = await append(conn, "c", b"1", routing_key="order.redriven")

        await becomes("sent", lambda: state_of(conn, other), 20)
        await becomes("parked", lambda: state_of(conn, lost[0]))
        await becomes("parked", lambda: state_of(conn, behind))
        await becomes(["orders/order.placed"], lambda: closed_routes(relay))
        assert await relay.says("blocked_keys") == 0
        await channel.queue_bind("orders.work", "orders", "order.placed")
        await becomes(True, lambda: all_settled(conn))
        await becomes(0.0, lambda: relay.metric("relay_closed_routes"))

    assert await states(conn) == {"sent": 4}
    async with recording(topology) as recorder:
        await eventually(lambda: len(recorder.messages) == 4)
    assert recorder.bodies()[-3:] in ([b"1", b"1", b"2"], [b"1", b"2", b"1"])
    assert await _waiting(conn) == (0, 0)


async def test_many_dead_routes_keep_none_from_its_turn(
    conn: AsyncConnection, database_url: str, topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    More routes wait than are looked at in one turn, and the first ones will never be there: the last one is tried too.
    """
    monkeypatch.setattr(routes, "PAGE", 2)
    settings = Settings(database_url=database_url, amqp_url=topology, probe_seconds=0.3)
    publisher, stop = Publisher([topology], settings.confirm_seconds), asyncio.Event()
    guard, claims = Guard(settings, publisher), ParallelClaims(settings)
    forwarder = Forwarder(settings, publisher, guard, RelayState(), asyncio.Event(), claims)
    forwarding = asyncio.create_task(forwarder.run(stop), name="forward")
    async with broker(topology) as channel:
        await channel.queue_unbind("orders.work", "orders", "order.placed")
        for routing_key in ("order.a", "order.b", "order.c", "order.placed"):
            await append(conn, routing_key, routing_key=routing_key)
        await becomes({"parked": 4}, lambda: states(conn))
        await channel.queue_bind("orders.work", "orders", "order.placed")

    await becomes({"parked": 3, "sent": 1}, lambda: states(conn), 20)
    stop.set()
    await forwarding
    await publisher.close()


async def closed_routes(relay: RelayProcess) -> list[str]:
    return list(await relay.says("closed_routes") or ())


async def _waiting(conn: AsyncConnection) -> tuple[int, int]:
    row = await (
        await conn.execute("SELECT (SELECT count(*) FROM outbox_parked), (SELECT count(*) FROM outbox_waiting)")
    ).fetchone()
    assert row is not None
    return row[0], row[1]


async def test_a_full_queue_is_a_route_failure(conn: AsyncConnection, topology: str, start_relay: StartRelay) -> None:
    """
    Nacks from a full queue spend nobody's budget: all arrives, in order, when there is room.
    """
    async with broker(topology) as channel:
        await channel.queue_declare(
            "small",
            durable=True,
            arguments={"x-queue-type": "quorum", "x-max-length": 5, "x-overflow": "reject-publish"},
        )
        await channel.queue_bind("small", "orders", "small")
        relay = start_relay(probe_seconds=0.2)
        await append_many(conn, 300, keys=20, routing_key="small")
        await becomes(["orders/small"], lambda: closed_routes(relay), 20)
        async with recording(topology, "small") as recorder:
            await becomes(True, lambda: all_settled(conn), 60)
            await eventually(lambda: len(recorder.messages) >= 300)

    assert await states(conn) == {"sent": 300}
    assert (await relay.status())["blocked_keys"] == 0
    arrived = recorder.numbers(await keys_by_event(conn))
    assert all(numbers == list(range(15)) for numbers in arrived.values())


async def test_a_missing_exchange_is_a_route_failure(
    conn: AsyncConnection, topology: str, start_relay: StartRelay
) -> None:
    """
    404 closes the channel and fails all that was outstanding, but only the rows of that exchange wait.
    """
    start_relay(probe_seconds=0.3)
    await append_many(conn, 40, keys=40)
    lost = await append(conn, "lost", exchange="later", routing_key="x")
    await append_many(conn, 40, keys=40)

    await becomes({"sent": 80, "parked": 1}, lambda: states(conn), 20)
    async with broker(topology) as channel:
        await channel.exchange_declare("later", exchange_type="fanout", durable=True)
        await channel.queue_bind("orders.work", "later", "")
        await becomes("sent", lambda: state_of(conn, lost))


async def test_a_refused_row_blocks_its_key_alone(
    conn: AsyncConnection, database_url: str, start_relay: StartRelay
) -> None:
    """
    A row that can never be sent blocks its key: parked with its reason, later rows behind it, all others running. It is
    listed, retried in vain, skipped, and then the key goes on.
    """
    relay = start_relay()
    poison = await append(conn, "poison", headers='{"big": 99999999999999999999999}')
    behind = await append(conn, "poison", b"2")
    await append_many(conn, 100, keys=50)

    await becomes({"sent": 100, "parked": 2}, lambda: states(conn), 20)
    await becomes(1, lambda: relay.says("blocked_keys"))
    assert await relay.says("backlog") == 2

    listed = await asyncio.to_thread(operator, database_url, "blocked")
    assert listed[0] == 0
    assert f"poison  row {poison}" in listed[1]
    assert "unencodable" in listed[1]

    assert (await asyncio.to_thread(operator, database_url, "retry", "poison"))[0] == 0
    await becomes(2.0, lambda: relay.metric("relay_refused_total"))
    refused = await asyncio.to_thread(operator, database_url, "retry", "nobody")
    assert refused[0] == 1
    assert "not blocked" in refused[2]

    skipped = await asyncio.to_thread(operator, database_url, "skip", str(poison), "--reason", "never valid")
    assert skipped[0] == 0
    await becomes("sent", lambda: state_of(conn, behind))

    assert await state_of(conn, poison) == "skipped"
    assert await _waiting(conn) == (0, 0)
    audit = await (await conn.execute("SELECT command, key, row_id, reason FROM outbox_audit ORDER BY id")).fetchall()
    assert audit == [("retry", "poison", None, ""), ("skip", "poison", poison, "never valid")]


async def test_ten_thousand_rows_behind_a_blocked_key(conn: AsyncConnection, start_relay: StartRelay) -> None:
    """
    With 10,000 rows parked in one shard, another key of the same shard goes on, and claims read none of them.
    """
    relay = start_relay()
    await append(conn, "poison", headers='{"big": 99999999999999999999999}')
    await conn.execute(
        """
        INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
        SELECT gen_random_uuid(), 'poison', 'orders', 'order.placed', true, 'text/plain', '{}', 'x'
        FROM generate_series(1, 10000)
        """
    )
    await becomes({"parked": 10001}, lambda: states(conn), 40)
    row = await (
        await conn.execute(
            """
            SELECT 'key-' || n FROM generate_series(1, 10000) AS n
            WHERE hashtextextended('key-' || n, 0) & 63 = hashtextextended('poison', 0) & 63 LIMIT 1
            """
        )
    ).fetchone()
    assert row is not None
    before = await relay.metric("relay_batch_rows_sum")

    neighbour = await append(conn, row[0])
    await becomes("sent", lambda: state_of(conn, neighbour))

    assert await relay.metric("relay_batch_rows_sum") == before + 1


@pytest.mark.parametrize("moment", ["infinity", "-infinity"])
async def test_a_time_without_end(conn: AsyncConnection, start_relay: StartRelay, moment: str) -> None:
    """
    A row that an owner gave an infinite time is refused; the relay goes on, and is ready.
    """
    await conn.execute(
        "INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, body, created_at) "
        "VALUES (gen_random_uuid(), 'odd', 'orders', 'order.placed', true, 'text/plain', '', %s)",
        (moment,),
    )
    relay = start_relay()
    await becomes(1, lambda: relay.says("blocked_keys"), 20)
    await append(conn)
    await becomes({"sent": 1, "parked": 1}, lambda: states(conn))
    await relay.ready()


async def test_bodies_bound_a_claim(conn: AsyncConnection, topology: str, start_relay: StartRelay) -> None:
    """
    A claim holds so many bytes or one row: large bodies go through whole, over many frames.
    """
    relay = start_relay(batch_bytes=1000)
    body = bytes(at % 256 for at in range(300_000))
    for key in ("a", "b", "c"):
        await append(conn, key, body)
    async with recording(topology) as recorder:
        await eventually(lambda: len(recorder.messages) == 3, 20)

    assert recorder.bodies() == [body] * 3
    assert await relay.metric('relay_batch_rows_bucket{le="1.0"}') == 3


async def test_a_slow_commit_of_another_key_is_not_overtaken_for_good(
    conn: AsyncConnection, database_url: str, start_relay: StartRelay
) -> None:
    """
    A row whose transaction commits long after later ids were sent is sent all the same, and the mark waits for it.
    """
    relay = start_relay()
    async with await AsyncConnection.connect(database_url) as slow:
        late = await append(slow, "slow")
        for _ in range(3):
            await append_many(conn, 50, keys=50)
            await becomes(True, lambda: all_settled(conn), 20)
        await asyncio.to_thread(relay.get, "/status")
        assert (await relay.status())["mark"] < late
        await slow.commit()
    await becomes("sent", lambda: state_of(conn, late))
    await becomes(late + 150, lambda: relay.says("mark"))


async def test_a_hot_key_leaves_room_for_others(conn: AsyncConnection, topology: str, start_relay: StartRelay) -> None:
    """
    Events of other keys wait for a share of each claim, and not for all the events of a hot key that were there before
    them; the order of the hot key stays.
    """
    await append_many(conn, 1500, keys=1)
    others = {await append(conn, f"other-{number}") for number in range(10)}
    events = await keys_by_event(conn)
    async with recording(topology) as recorder:
        start_relay(lanes=1, batch_rows=200)
        await eventually(lambda: len(recorder.event_ids) == 1500 + len(others), 60)

    keys = [events[str(message.header.properties.message_id)] for message in recorder.messages]
    last_of_others = max(at for at, key in enumerate(keys) if key != "key-0")
    assert last_of_others < 600
    hot = [int(message.body) for message, key in zip(recorder.messages, keys, strict=True) if key == "key-0"]
    assert list(dict.fromkeys(hot)) == list(range(1500))
    await becomes({"sent": 1510}, lambda: states(conn))
    assert await _waiting(conn) == (0, 0)
