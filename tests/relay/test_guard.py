"""A required row reaches its queue, or is not sent: also where another queue takes the same messages."""

import asyncio
import signal
from pathlib import Path

import aiormq
import aiormq.exceptions
import pytest
from aiormq.abc import AbstractChannel, FieldTable
from psycopg import AsyncConnection

from dev.sandbox.servers import Servers
from relay import management
from relay.database import connect
from relay.forward import Forwarder
from relay.guard import Guard
from relay.management import Binding, Management
from relay.message import Message, Reply, Route
from relay.outbox_table import SESSION
from relay.parallel_claims import ParallelClaims
from relay.publisher import Publisher
from relay.settings import Settings
from relay.state import RelayState
from relay.topology import shape_of
from tests.eventually import eventually
from tests.policies import put_policy
from tests.relay.conftest import StartRelay
from tests.relay.service import (
    Recorder,
    RelayProcess,
    append,
    becomes,
    broker,
    keys_by_event,
    recording,
    state_of,
    states,
)
from tests.relay.wire import Wire
from tests.warm import declare_topology

PLACED = Route("orders", "order.placed")
KEYS = 10


def guard_of(database_url: str, amqp_url: str, publisher: Publisher, **settings: str) -> Guard:
    its = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url, "RELAY_REQUIRED_QUEUES": "orders.work"} | settings
    return Guard(Settings.read(its), publisher)


def guard_that_sees_bindings(database_url: str, amqp_url: str, publisher: Publisher, servers: Servers) -> Guard:
    assert servers.management_url is not None
    its = {"RELAY_MANAGEMENT_URL": servers.management_url, "RELAY_REQUIRED_ROUTES": "orders/order.placed"}
    return guard_of(database_url, amqp_url, publisher, **its)


async def test_a_queue_declared_anew_is_another(conn: AsyncConnection, database_url: str, topology: str) -> None:
    """
    A required queue that was deleted and declared again between two looks is noticed, by every relay that relied on it;
    they share one sentinel, and it goes with the queue.
    """
    publishers = [Publisher([topology], 5.0), Publisher([topology], 5.0)]
    guards = [guard_of(database_url, topology, publisher) for publisher in publishers]
    own = await connect(database_url, "test", SESSION)
    for publisher, guard in zip(publishers, guards, strict=True):
        await publisher.connect()
        assert await guard.complete(own) == ""
        assert await guard.before([PLACED]) == await guard.after([PLACED]) == {}
    first = await _sentinel(conn)

    async with broker(topology) as channel:
        await channel.queue_delete("orders.work")
        declare_topology(topology)
    for guard in guards:
        assert await guard.after([PLACED]) == {PLACED: "queue 'orders.work' was deleted"}
        assert PLACED in await guard.before([PLACED])
        assert await guard.complete(own) == ""
        assert await guard.before([PLACED]) == await guard.after([PLACED]) == {}

    assert await _sentinel(conn) != first
    await own.close()
    for publisher in publishers:
        await publisher.close()


async def test_a_binding_is_looked_at_before_it_is_used(
    database_url: str, topology: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A relay that has not published for a while, or the other claimer, does not know that a binding is gone; what it
    publishes just before the binding is back would look well afterwards. So it looks before, too.
    """
    publisher = Publisher([topology], 5.0)
    guard = guard_that_sees_bindings(database_url, topology, publisher, servers)
    own = await connect(database_url, "test", SESSION)
    await publisher.connect()
    assert await guard.complete(own) == ""
    assert await guard.before([PLACED]) == await guard.after([PLACED]) == {}

    async with broker(topology) as channel:
        await channel.queue_unbind("orders.work", "orders", "order.placed")
        monkeypatch.setattr("relay.guard.SEEN_SECONDS", 600)
        assert await guard.before([PLACED]) == {}, "it has just been seen"
        monkeypatch.setattr("relay.guard.SEEN_SECONDS", 0)
        assert list(await guard.before([PLACED])) == [PLACED]
        monkeypatch.setattr("relay.guard.SEEN_SECONDS", 600)
        assert list(await guard.before([PLACED])) == [PLACED], "it has been seen to be gone"
        await channel.queue_bind("orders.work", "orders", "order.placed")
        assert await guard.before([PLACED]) == {}

    await own.close()
    guard.forget()
    await publisher.close()


async def test_a_binding_is_watched_while_messages_are_out(
    database_url: str, topology: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A binding that was away while confirms were waited for, and is back when they come, has been seen to be away.
    """
    publisher = Publisher([topology], 5.0)
    guard = guard_that_sees_bindings(database_url, topology, publisher, servers)
    looks: list[list[Binding]] = []
    bindings = Management.bindings

    async def look(self: Management, name: str) -> list[Binding]:
        looks.append(await bindings(self, name))
        return looks[-1]

    monkeypatch.setattr(Management, "bindings", look)
    monkeypatch.setattr("relay.guard.SEEN_SECONDS", 0.01)
    own = await connect(database_url, "test", SESSION)
    await publisher.connect()
    assert await guard.complete(own) == ""
    assert await guard.before([PLACED]) == {}

    async with broker(topology) as channel:
        async with guard.watching([PLACED]):
            await channel.queue_unbind("orders.work", "orders", "order.placed")
            await eventually(lambda: not any(each.routing_key == "order.placed" for each in looks[-1]))
            before = len(looks)
            await channel.queue_bind("orders.work", "orders", "order.placed")
            await eventually(lambda: len(looks) > before + 1)
        assert list(await guard.between([PLACED])) == [PLACED]
        assert list(await guard.after([PLACED])) == [PLACED]
        assert await guard.before([PLACED]) == await guard.after([PLACED]) == {}, "the next claim is another one"

    await own.close()
    guard.forget()
    await publisher.close()


async def _sentinel(conn: AsyncConnection) -> str:
    (row,) = await (await conn.execute("SELECT exchange FROM outbox_witness")).fetchall()
    return str(row[0])


async def test_a_missing_queue_is_not_made(database_url: str, topology: str) -> None:
    """
    Looking for a queue that was deleted does not bring it back in a shape of the relay's.
    """
    publisher = Publisher([topology], 5.0)
    guard = guard_of(database_url, topology, publisher)
    own = await connect(database_url, "test", SESSION)
    await publisher.connect()
    async with broker(topology) as channel:
        await channel.queue_delete("orders.work")

    for _ in range(2):
        assert "does not exist" in await guard.complete(own)

    assert list(await guard.before([PLACED])) == [PLACED]
    await own.close()
    await publisher.close()


async def test_looking_makes_nothing(topology: str) -> None:
    """
    The declarations that tell a queue's shape do not make one that was deleted just before.
    """
    async with aiormq.connect(topology) as connection:
        await shape_of(connection, "queue", "nowhere")
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await (await connection.channel()).queue_declare("nowhere", passive=True)
        assert "x-queue-type" not in await shape_of(connection, "queue", "orders.work")


async def subscribe(channel: AbstractChannel) -> None:
    """Be somebody else who wants the same events: the broker has a queue to confirm for."""
    await channel.queue_declare("others", durable=True, arguments={"x-queue-type": "quorum"})
    await channel.queue_bind("others", "orders", "order.#")


async def write(database_url: str, stop: asyncio.Event) -> int:
    """Append numbered rows of some keys until told to stop; return how many."""
    rows = 0
    async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
        while not stop.is_set():
            await append(conn, f"key-{rows % KEYS}", str(rows // KEYS).encode())
            rows += 1
    return rows


async def all_recorded(conn: AsyncConnection, recorder: Recorder) -> bool:
    """Whether the work queue's consumer has had every event that is marked sent."""
    rows = await (await conn.execute("SELECT event_id::text FROM outbox WHERE state = 'sent'")).fetchall()
    return {row[0] for row in rows} <= {str(message.header.properties.message_id) for message in recorder.messages}


async def nobody_commits(conn: AsyncConnection) -> bool:
    """Whether no relay has a statement under way."""
    rows = await (
        await conn.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = 'relay' AND state = 'active' "
            "AND datname = current_database()"
        )
    ).fetchall()
    return not rows


def numbers(rows: int) -> dict[str, list[int]]:
    """What a consumer has had of so many rows, if it had all of them and in order."""
    return {f"key-{each}": list(range(-(-(rows - each) // KEYS))) for each in range(KEYS)}


@pytest.mark.parametrize("back", ["at once", "later"])
async def test_a_work_queue_deleted_under_load(
    back: str, conn: AsyncConnection, database_url: str, topology: str, start_relay: StartRelay
) -> None:
    """
    While another queue takes the same events, the work queue is deleted: what the broker confirms meanwhile is not
    sent, also if the queue is declared anew before the relay can look. All of it reaches the queue when it is back, in
    order, by itself.
    """
    relay = start_relay(probe_seconds=0.3, batch_rows=20)
    recorder = Recorder()
    stop = asyncio.Event()
    async with broker(topology) as channel, broker(topology) as consumer:
        await subscribe(channel)
        await consumer.basic_qos(prefetch_count=500)
        await consumer.basic_consume("orders.work", recorder.take)
        writing = asyncio.create_task(write(database_url, stop), name="writer")
        await eventually(lambda: len(recorder.messages) >= 100, 30)

        # What the queue held when it was deleted nobody can promise: so it is empty then, and stays so until it goes.
        relay.signal(signal.SIGSTOP)
        await eventually(lambda: nobody_commits(conn))
        await eventually(lambda: all_recorded(conn, recorder))
        await channel.queue_delete("orders.work")
        if back == "later":
            relay.signal(signal.SIGCONT)
            await eventually(lambda: _closed(relay), 20)
            before = (await states(conn))["sent"]
            written = await _count(conn)
            await eventually(lambda: _more_than(conn, written + 100), 30)
            assert (await states(conn))["sent"] == before
            assert await relay.says("blocked_keys") == 0
        declare_topology(topology)
        relay.signal(signal.SIGCONT)
        await consumer.basic_consume("orders.work", recorder.take)

        already = len(recorder.messages)
        await eventually(lambda: len(recorder.messages) >= already + 100, 30)
        stop.set()
        rows = await writing
        await becomes({"sent": rows}, lambda: states(conn), 60)
        await eventually(lambda: all_recorded(conn, recorder), 30)

    assert recorder.numbers(await keys_by_event(conn)) == numbers(rows)


async def test_a_work_queue_is_back_in_the_middle_of_a_claim(
    conn: AsyncConnection, database_url: str, topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The first event of a key missed its queue, which is back before the second goes: the second waits behind it.
    """
    settings = Settings(database_url=database_url, amqp_url=topology, required_queues="orders.work", hold_seconds=10)
    publisher, stop = Publisher([topology], settings.confirm_seconds), asyncio.Event()
    guard, claims = Guard(settings, publisher), ParallelClaims(settings)
    forwarder = Forwarder(settings, publisher, guard, RelayState(), asyncio.Event(), claims)
    publish = publisher.publish

    async def publish_and_bring_it_back(wave: list[Message], until: float) -> dict[int, Reply]:
        replies = await publish(wave, until)
        await asyncio.to_thread(declare_topology, topology)
        return replies

    forwarding = asyncio.create_task(forwarder.run(stop), name="forward")
    await eventually(lambda: guard.is_complete)
    async with broker(topology) as channel:
        await subscribe(channel)
        await channel.queue_delete("orders.work")
        monkeypatch.setattr(publisher, "publish", publish_and_bring_it_back)
        async with conn.transaction():
            for number in range(3):
                await append(conn, "key", str(number).encode())
        await becomes({"sent": 3}, lambda: states(conn), 20)
        async with recording(topology) as recorder:
            await eventually(lambda: all_recorded(conn, recorder))
    stop.set()
    await forwarding
    await publisher.close()

    assert recorder.numbers(await keys_by_event(conn)) == {"key": [0, 1, 2]}


async def test_a_work_queue_unbound_under_load(
    conn: AsyncConnection, database_url: str, topology: str, servers: Servers, start_relay: StartRelay
) -> None:
    """
    With the management interface the relay sees a binding that is away while another queue takes the same events:
    nothing of that route is sent, other routes go on, and all of it reaches the queue when it is bound again, in order.
    """
    relay = start_relay(
        probe_seconds=0.3,
        batch_rows=20,
        management_url=servers.management_url,
        required_routes="orders/order.placed,orders/order.redriven",
    )
    recorder = Recorder()
    stop = asyncio.Event()
    async with broker(topology) as channel, broker(topology) as consumer:
        await subscribe(channel)
        await consumer.basic_qos(prefetch_count=500)
        await consumer.basic_consume("orders.work", recorder.take)
        writing = asyncio.create_task(write(database_url, stop), name="writer")
        await eventually(lambda: len(recorder.messages) >= 100, 30)

        await channel.queue_unbind("orders.work", "orders", "order.placed")
        await eventually(lambda: _closed(relay), 20)
        before = (await states(conn))["sent"]
        written = await _count(conn)
        await eventually(lambda: _more_than(conn, written + 100), 30)
        assert (await states(conn))["sent"] == before
        other = await append(conn, "other", b"0", routing_key="order.redriven")
        await eventually(lambda: _is_sent(conn, other))

        await channel.queue_bind("orders.work", "orders", "order.placed")
        already = len(recorder.messages)
        await eventually(lambda: len(recorder.messages) >= already + 100, 30)
        stop.set()
        rows = await writing
        await becomes({"sent": rows + 1}, lambda: states(conn), 60)
        await eventually(lambda: all_recorded(conn, recorder), 30)

    assert recorder.numbers(await keys_by_event(conn)) == numbers(rows) | {"other": [0]}


async def test_a_silent_management_interface_holds_up_its_routes_alone(
    conn: AsyncConnection, database_url: str, topology: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    While the management interface takes questions and answers none, rows that need its answer wait, and those of other
    routes in the same claim are sent: it stands, though the wait is longer than the server's patience with an idle one.
    """
    assert servers.management_url is not None
    monkeypatch.setattr(management, "SECONDS", 2.5)
    placed, other = await append(conn, "a"), await append(conn, "b", routing_key="order.redriven")
    async with Wire(servers.management_url).open() as wire:
        settings = Settings(
            database_url=database_url,
            amqp_url=topology,
            required_queues="orders.work",
            required_routes="orders/order.placed",
            management_url=wire.url,
        )
        publisher, state, stop = Publisher([topology], settings.confirm_seconds), RelayState(), asyncio.Event()
        guard = Guard(settings, publisher)
        forwarder = Forwarder(settings, publisher, guard, state, asyncio.Event(), ParallelClaims(settings))
        wire.hold()
        forwarding = asyncio.create_task(forwarder.run(stop), name="forward")
        await becomes("sent", lambda: state_of(conn, other))
        assert await state_of(conn, placed) == "parked"
        assert state.registry.get_sample_value("relay_database_lost_total") == 0

        wire.release()
        await becomes("sent", lambda: state_of(conn, placed))
        stop.set()
        await forwarding
        await publisher.close()


async def _closed(relay: RelayProcess) -> bool:
    return "orders/order.placed" in (await relay.says("closed_routes") or {})


async def _count(conn: AsyncConnection) -> int:
    row = await (await conn.execute("SELECT count(*) FROM outbox")).fetchone()
    assert row is not None
    return int(row[0])


async def _more_than(conn: AsyncConnection, rows: int) -> bool:
    return await _count(conn) > rows


async def _is_sent(conn: AsyncConnection, row_id: int) -> bool:
    row = await (await conn.execute("SELECT state = 'sent' FROM outbox WHERE id = %s", (row_id,))).fetchone()
    return row == (True,)


@pytest.mark.parametrize("durable", [True, False])
async def test_only_a_quorum_queue_is_enough(durable: bool, database_url: str, topology: str, tmp_path: Path) -> None:
    """
    A required queue that may lose what it confirmed is refused at the start, in one line.
    """
    async with broker(topology) as channel:
        await channel.queue_declare("classic", durable=durable)
        relay = RelayProcess(database_url, topology, tmp_path, required_queues="classic").start()
        try:
            assert await asyncio.to_thread(relay.wait) == 1
        finally:
            relay.kill()

    line = relay.log.read_text()
    assert line.startswith("relay: queue 'classic' is no")
    assert line.count("\n") == 1


async def test_a_classic_queue_in_its_place_is_not_enough(
    conn: AsyncConnection, topology: str, start_relay: StartRelay
) -> None:
    """
    A required queue that comes back as a classic one gets nothing, until it is as it should be.
    """
    relay = start_relay(probe_seconds=0.3)
    await relay.ready()
    async with broker(topology) as channel:
        await channel.queue_delete("orders.work")
        await channel.queue_declare("orders.work", durable=True)
        await channel.queue_bind("orders.work", "orders", "order.placed")
        await append(conn)
        await eventually(lambda: _closed(relay), 20)
        await eventually(lambda: _says_no_quorum(relay))
        assert await states(conn) == {"parked": 1}

        await channel.queue_delete("orders.work")
    declare_topology(topology)
    await becomes({"sent": 1}, lambda: states(conn), 20)
    async with recording(topology) as recorder:
        await eventually(lambda: recorder.messages)


async def _says_no_quorum(relay: RelayProcess) -> bool:
    return "no quorum queue" in str(await relay.says("closed_routes"))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        ("unbind", "relay: queue 'orders.work' is bound to none of orders"),
        ("unbind one", "relay: no binding leads from orders/order.placed to 'orders.work'"),
        ("drop", "relay: queue 'orders.spare' has max-length without overflow=reject-publish"),
        ("expire", "relay: queue 'orders.spare' drops messages after message-ttl"),
    ],
)
async def test_management_shows_what_amqp_does_not(
    spoil: str, line: str, database_url: str, topology: str, servers: Servers, tmp_path: Path
) -> None:
    """
    With the management interface the relay refuses a required queue that gets nothing, or drops what it confirmed.
    """
    queues = "orders.work"
    async with broker(topology) as channel:
        if spoil in ("unbind", "unbind one"):
            await channel.queue_unbind("orders.work", "orders", "order.placed")
        if spoil == "unbind":
            await channel.queue_unbind("orders.work", "orders", "order.redriven")
        if spoil in ("drop", "expire"):
            queues = "orders.spare"
            arguments: FieldTable = {"x-queue-type": "quorum"} | ({"x-message-ttl": 1000} if spoil == "expire" else {})
            await channel.queue_declare(queues, durable=True, arguments=arguments)
            await channel.queue_bind(queues, "orders", "order.placed")
    if spoil == "drop":
        await put_policy(servers, topology, f"^{queues}$", {"max-length": 10}, queue=queues)
    relay = RelayProcess(
        database_url,
        topology,
        tmp_path,
        required_queues=queues,
        required_routes="orders/order.placed",
        management_url=servers.management_url,
    ).start()
    try:
        assert await asyncio.to_thread(relay.wait) == 1
    finally:
        relay.kill()

    assert relay.log.read_text().startswith(line)
    assert relay.log.read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("queue", "definition", "line"),
    [
        ("orders.work", {"message-ttl": 60000}, "queue 'orders.work' drops messages after message-ttl (policy 'test')"),
        ("orders.dead", {"message-ttl": 60000}, "queue 'orders.dead' drops messages after message-ttl (policy 'test')"),
        ("orders.work", {"expires": 600000}, "queue 'orders.work' is deleted with its messages while no one consumes"),
        ("orders.work", {"delivery-limit": 2}, "queue 'orders.work' gives messages up after 2 returns"),
    ],
)
async def test_a_policy_that_gives_up_messages_is_named(
    queue: str,
    definition: dict[str, object],
    line: str,
    database_url: str,
    topology: str,
    servers: Servers,
    tmp_path: Path,
) -> None:
    """
    The relay refuses to start under such a policy; one that comes later gives a warning, and the end of it a line.
    """
    assert servers.management_url is not None
    its: dict[str, object] = {
        "management_url": servers.management_url,
        "required_routes": "orders/order.placed",
        "upkeep_seconds": 0.3,
    }
    running = RelayProcess(database_url, topology, tmp_path, **its).start()
    try:
        await running.ready()
        await put_policy(servers, topology, f"^{queue}$", definition, queue=queue)
        await eventually(lambda: f"WARNING {line}" in running.log.read_text(), 20)
        assert running.log.read_text().count(line) == 1
        (tmp_path / "late").mkdir()
        late = RelayProcess(database_url, topology, tmp_path / "late", **its).start()
        try:
            assert await asyncio.to_thread(late.wait) == 1
        finally:
            late.kill()
        assert late.log.read_text().startswith(f"relay: {line}")
        assert late.log.read_text().count("\n") == 1
        await put_policy(servers, topology, f"^{queue}$", {"delivery-limit": 1000}, queue=queue)
        await eventually(lambda: f"mended: {line}" in running.log.read_text(), 20)
        assert running.runs
    finally:
        running.kill()
