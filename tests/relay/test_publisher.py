"""The RabbitMQ end by itself: what each message is told, and what happens when the wire is gone."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import aiormq
import pytest
from aiormq.connection import TCPTransportFactory
from yarl import URL

from dev.chaos.amqp_wire import BASIC_ACK, amqp_wire_to
from dev.sandbox.ports import free_port
from dev.sandbox.servers import Servers
from relay.frames import FRAME_OVERHEAD, Encoder
from relay.message import Answer, Message
from relay.publisher import BrokerBlocked, BrokerLost, Publisher
from tests.eventually import eventually
from tests.relay.messages import make_message
from tests.relay.service import broker
from tests.relay.wire import Wire


@pytest.fixture
async def publisher(topology: str) -> AsyncIterator[Publisher]:
    opened = Publisher([topology], confirm_seconds=5.0)
    yield opened
    await opened.close()


async def publish(publisher: Publisher, wave: list[Message]) -> dict[int, Answer]:
    replies = await publisher.publish(wave, time.monotonic() + 10)
    return {row_id: reply.answer for row_id, reply in replies.items()}


async def test_a_missing_exchange_takes_nobody_with_it(publisher: Publisher) -> None:
    """
    The rows of a missing exchange are told so, and all others are confirmed.
    """
    wave = [make_message(at, str(at), exchange="gone" if at in (3, 50) else "orders") for at in range(100)]

    answers = await publish(publisher, wave)

    assert {row_id for row_id, answer in answers.items() if answer is Answer.CLOSED_ROUTE} == {3, 50}
    assert sum(answer is Answer.CONFIRMED for answer in answers.values()) == 98


async def test_poison_is_found_by_halving(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A message that makes the broker close the connection is found alone, and takes nobody with it.
    """
    encode = Encoder.encode

    def poisoned(encoder: Encoder, message: Message) -> bytes:
        raw = encode(encoder, message)
        if message.id != 37:
            return raw
        # A frame of an unknown type where the body should be: 501, and the connection is closed.
        start = len(raw) - len(message.body) - FRAME_OVERHEAD
        return raw[:start] + b"\x09" + raw[start + 1 :]

    monkeypatch.setattr(Encoder, "encode", poisoned)
    answers = await publish(publisher, [make_message(at, str(at)) for at in range(64)])

    assert answers.pop(37) is Answer.CLOSED_ALONE
    assert set(answers.values()) == {Answer.CONFIRMED}
    assert len(answers) == 63


async def test_too_large_for_the_broker(publisher: Publisher) -> None:
    """
    A body of the broker's own maximum (128 MiB on 3.10, 16 MiB on 4.x) passes; one byte more is refused, alone.
    """
    connection = await publisher.connect()
    version = str(connection.server_properties["version"])
    most = (16 if int(version.split(".")[0]) >= 4 else 128) * 1024 * 1024

    assert await publish(publisher, [make_message(1, "a", body=bytes(most))]) == {1: Answer.CONFIRMED}
    answers = await publish(publisher, [make_message(2, "b"), make_message(3, "c", body=bytes(most + 1))])

    assert answers == {2: Answer.CONFIRMED, 3: Answer.CLOSED_ALONE}


async def test_brokers_are_tried_in_turn(topology: str) -> None:
    """
    A broker of the list that is not there costs nothing but its turn.
    """
    publisher = Publisher([f"amqp://127.0.0.1:{free_port()}/", topology], confirm_seconds=5.0)
    try:
        await publisher.connect()
        assert await publish(publisher, [make_message(1)]) == {1: Answer.CONFIRMED}
    finally:
        await publisher.close()


async def test_the_next_broker_after_an_unanswered_confirm(topology: str) -> None:
    """
    A node that its cluster has lost takes connections and channels, and confirms nothing: the next one comes first.
    """
    async with amqp_wire_to(topology) as lost:
        lost.lose(BASIC_ACK)
        publisher = Publisher([lost.url(topology), topology], confirm_seconds=1.0)
        assert await publish(publisher, [make_message(1)]) == {1: Answer.UNANSWERED}
        assert await publish(publisher, [make_message(1)]) == {1: Answer.CONFIRMED}
        await publisher.close()
        assert lost.accepted == 1


async def test_a_broker_that_takes_no_connection_is_passed_over(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A connection that is not answered, as behind a firewall that drops it, costs its turn and no more.
    """
    monkeypatch.setattr("relay.publisher.CONNECT_SECONDS", 1.0)
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # nobody accepts them: from the second on the system answers no more
            ahead = waiting.enter_context(socket.socket())
            ahead.setblocking(False)
            ahead.connect_ex(full.getsockname())
        publisher = Publisher([f"amqp://127.0.0.1:{full.getsockname()[1]}/", topology], confirm_seconds=5.0)
        async with asyncio.timeout(20):
            await publisher.connect()
        assert await publish(publisher, [make_message(1)]) == {1: Answer.CONFIRMED}
        await publisher.close()


async def test_a_peer_that_closes_at_once_is_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A port that takes connections and closes them, as a balancer's does with no broker behind it, is a broker that is
    away. With TLS aiormq may read the end before anything else, as it does here.
    """
    create = TCPTransportFactory.create

    async def created(
        factory: TCPTransportFactory, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await create(factory, url, **kwargs)
        await eventually(reader.at_eof)
        return reader, writer

    monkeypatch.setattr(TCPTransportFactory, "create", created)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        publisher = Publisher([f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}/"], confirm_seconds=5.0)
        with pytest.raises(BrokerLost, match="closed at once"):
            await publisher.connect()


async def test_nobody_there() -> None:
    """
    With no broker at all the error names each.
    """
    urls = [f"amqp://127.0.0.1:{free_port()}/", f"amqp://127.0.0.1:{free_port()}/"]
    publisher = Publisher(urls, confirm_seconds=5.0)

    with pytest.raises(BrokerLost) as error:
        await publisher.connect()

    assert str(error.value).count("127.0.0.1") >= 2


async def test_a_lost_heartbeat_is_a_lost_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    aiormq lets a lost heartbeat surface as a cancellation that nobody asked for: that is an outage, and not the end of
    the relay. One that somebody asked for stays what it is.
    """
    publisher = Publisher([f"amqp://127.0.0.1:{free_port()}/"], confirm_seconds=5.0)
    asked_for = False

    async def cancelled(_connection: aiormq.Connection) -> None:
        if asked_for:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        raise asyncio.CancelledError

    monkeypatch.setattr(aiormq.Connection, "connect", cancelled)
    with pytest.raises(BrokerLost, match="no heartbeat"):
        await publisher.connect()

    asked_for = True
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(publisher.connect(), name="connecting")


async def test_a_cancelled_wave_gives_up_its_channel(publisher: Publisher) -> None:
    """
    After a cancelled publish no later wave can be given its confirms.
    """
    await publisher.connect()
    before = await publisher._ready_channel()
    task = asyncio.create_task(publisher.publish([make_message(1, body=bytes(10_000_000))], time.monotonic() + 10))
    while before._left == 0:  # noqa: ASYNC110  # until it is on its way, and has no answer yet
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await publish(publisher, [make_message(2)]) == {2: Answer.CONFIRMED}
    assert await publisher._ready_channel() is not before


async def test_late_answers_count_while_the_next_channel_is_opened(topology: str) -> None:
    """
    A wave has no answer in time, and its channel is given up; what the broker says of it before it opens the next one
    is still heard: a confirmed message is no silent one, which would be published again.
    """
    async with Wire(topology).open() as wire:
        publisher = Publisher([wire.url], confirm_seconds=2.0)
        await publisher.connect()
        before = publisher._channels_used
        old = await publisher._ready_channel()
        wire.hold_answers()
        publishing = asyncio.create_task(
            publish(publisher, [make_message(1), make_message(2, routing_key="nobody"), make_message(3)])
        )
        await eventually(lambda: publisher._channels_used > before + 1)  # the next channel is asked for
        assert old._left == 3
        wire.release()

        assert await publishing == {1: Answer.CONFIRMED, 2: Answer.RETURNED, 3: Answer.CONFIRMED}
        assert await publisher._ready_channel() is not old
        await publisher.close()


async def test_a_stopped_broker_is_lost_in_time(own_servers: Servers) -> None:
    """
    A broker that was stopped keeps its TCP connection; the publish ends by our own deadline, not by its.
    """
    publisher = Publisher([own_servers.amqp_url], confirm_seconds=0.5)
    await publisher.connect()
    async with broker(own_servers.amqp_url) as channel:
        await channel.queue_declare("here", durable=True)
    assert await publish(publisher, [make_message(1, exchange="", routing_key="here")]) == {1: Answer.CONFIRMED}
    own_servers.rabbitmq.pause()
    began = time.monotonic()
    try:
        with pytest.raises(BrokerLost):
            await publish(publisher, [make_message(2, exchange="", routing_key="here")])
        assert time.monotonic() - began < 6
        assert not publisher.is_connected
    finally:
        own_servers.rabbitmq.resume()
        await publisher.close()


async def test_an_alarm_is_told_from_an_outage(own_servers: Servers) -> None:
    """
    A broker under an alarm takes the connection and no messages: that is told as blocked, at once.
    """
    publisher = Publisher([own_servers.amqp_url], confirm_seconds=5.0)
    await publisher.connect()
    async with broker(own_servers.amqp_url) as channel:
        await channel.queue_declare("here", durable=True)
    alarm(own_servers, 0.00001)
    try:
        with pytest.raises(BrokerBlocked):
            await publish(publisher, [make_message(1, exchange="", routing_key="here", body=bytes(100_000))])
        assert publisher.is_blocked
    finally:
        alarm(own_servers, 0.4)
        publisher.drop()
        await publisher.close()


async def test_after_an_alarm_waves_go_out_on_another_channel(own_servers: Servers) -> None:
    """
    The wave that an alarm held up is confirmed when the alarm is over: those confirms are not taken for a later wave's.
    """
    publisher = Publisher([own_servers.amqp_url], confirm_seconds=5.0)
    connection = await publisher.connect()
    async with broker(own_servers.amqp_url) as channel:
        await channel.queue_declare("here", durable=True)
    before = await publisher._ready_channel()
    alarm(own_servers, 0.00001)
    try:
        with pytest.raises(BrokerBlocked):
            await publish(publisher, [make_message(1, exchange="", routing_key="here", body=bytes(100_000))])
    finally:
        alarm(own_servers, 0.4)
    await eventually(lambda: not publisher.is_blocked)

    assert await publish(publisher, [make_message(2, exchange="", routing_key="here")]) == {2: Answer.CONFIRMED}
    assert await publisher._ready_channel() is not before
    assert publisher.connection is connection
    await publisher.close()


def alarm(servers: Servers, watermark: float) -> None:
    """Raise or clear the memory alarm."""
    servers.rabbitmq.control("set_vm_memory_high_watermark", str(watermark))
