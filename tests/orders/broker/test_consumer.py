"""Deliveries in, acks out, against a real broker: also the contract with the hooks of aiormq that it leans on."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiormq
import pytest
from aiormq.abc import AbstractChannel
from pamqp.base import Frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from dev.chaos.amqp_wire import BASIC_DELIVER, CONSUME_OK, GET_EMPTY, amqp_wire_to
from orders.broker import rabbitmq, topology
from orders.broker.consumer import KEPT_BYTES, LARGEST_HEADER_BYTES, MAX_BODY_BYTES, Consumer, Delivery, PendingAcks
from orders.broker.topology import DEAD_QUEUE, WORK_QUEUE
from tests.eventually import eventually


class Hand:
    """Whoever takes deliveries, and keeps them."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []

    def take(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)

    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]


@asynccontextmanager
async def consuming(amqp_url: str, hand: Hand, prefetch: int = 100) -> AsyncIterator[Consumer]:
    consumer = Consumer(amqp_url, WORK_QUEUE, prefetch, hand.take)
    running = asyncio.create_task(consumer.run())
    await eventually(lambda: consumer.connected)
    yield consumer
    consumer.stop()
    consumer.finish()
    await asyncio.wait_for(running, 10)


@asynccontextmanager
async def channel(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aiormq.connect(amqp_url)
    async with connection:
        yield await connection.channel()


async def publish(amqp_url: str, bodies: Sequence[bytes], properties: Basic.Properties | None = None) -> None:
    async with channel(amqp_url) as publishing:
        for body in bodies:
            await publishing.basic_publish(body, routing_key=WORK_QUEUE, properties=properties)


def said(frames: Sequence[Frame]) -> list[tuple[str, int | None, bool]]:
    return [(frame.name, frame.delivery_tag, getattr(frame, "multiple", False)) for frame in frames]  # type: ignore[attr-defined]


def test_answers_are_ranges() -> None:
    """
    What is done up to a tag is acked at once; what lies beyond one that hangs is acked singly; nothing twice.
    """
    pending = PendingAcks()
    for tag in (2, 3, 5):
        pending.ack(tag)
    assert said(pending.take_frames()) == [("Basic.Ack", tag, False) for tag in (2, 3, 5)]

    pending.ack(6)
    pending.ack(1)
    # Up to 3 all is answered; 1 is the last of these that the broker has not heard of.
    assert said(pending.take_frames()) == [("Basic.Ack", 1, True), ("Basic.Ack", 6, False)]

    pending.reject(4)
    pending.ack(7)
    assert said(pending.take_frames()) == [("Basic.Reject", 4, False), ("Basic.Ack", 7, True)]
    assert pending.take_frames() == []


async def test_hanging_delivery_holds_no_ack(topology: str) -> None:
    """
    With one delivery in hand for ever, all behind it are acked, and only it comes again.
    """
    hand = Hand()
    bodies = [b"%d" % number for number in range(500)]
    await publish(topology, bodies)
    async with consuming(topology, hand, prefetch=50):
        acked = 0

        def ack_all_but_the_first() -> bool:
            nonlocal acked
            for delivery in hand.deliveries[max(1, acked) :]:
                delivery.ack()
            acked = len(hand.deliveries)
            return acked == len(bodies)

        await eventually(ack_all_but_the_first)

    again = Hand()
    async with consuming(topology, again):
        await eventually(lambda: again.bodies() == [hand.bodies()[0]])
        assert again.deliveries[0].redelivered
        again.deliveries[0].reject()
    async with channel(topology) as looking:

        async def is_dead() -> bool:
            message = await looking.basic_get(DEAD_QUEUE, no_ack=True)
            return message.body == hand.bodies()[0]

        await eventually(is_dead)


async def test_oversized_delivery_is_not_kept(topology: str) -> None:
    """
    Of a body that is too large to be one of ours, the beginning is kept, and its size.
    """
    hand = Hand()
    await publish(topology, [b"x" * (MAX_BODY_BYTES + 1), b"small", b""])
    async with consuming(topology, hand):
        await eventually(lambda: len(hand.deliveries) == 3)
        large, small, empty = hand.deliveries
        assert (large.size, large.body) == (MAX_BODY_BYTES + 1, b"x" * KEPT_BYTES)
        assert (small.size, small.body) == (5, b"small")
        assert (empty.size, empty.body) == (0, b"")


async def test_headers_are_read_with_care(topology: str) -> None:
    """
    A header counts only if it is a string, whatever a publisher puts there.
    """
    hand = Hand()
    await publish(topology, [b"a"], Basic.Properties(headers={"traceparent": 7, "x-death": [{"count": 99}], "s": "t"}))
    await publish(topology, [b"b"])
    async with consuming(topology, hand):
        await eventually(lambda: len(hand.deliveries) == 2)
        assert [hand.deliveries[0].header(name) for name in ("traceparent", "x-death", "s")] == [None, None, "t"]
        assert hand.deliveries[1].header("traceparent") is None


async def test_queue_is_deleted_and_made_again(topology: str) -> None:
    """
    When its queue is deleted the consumer is cancelled; it subscribes again by itself once the queue is back.
    """
    hand = Hand()
    async with consuming(topology, hand) as consumer:
        async with channel(topology) as operator:
            await operator.queue_delete(WORK_QUEUE)
            await eventually(lambda: not consumer.connected)
        await redeclare(topology)
        await eventually(lambda: consumer.connected)
        await publish(topology, [b"after"])
        await eventually(lambda: hand.bodies() == [b"after"])


async def test_channel_is_closed_by_the_broker(topology: str) -> None:
    """
    When the broker closes the channel over an answer, what was in hand comes again on the next one.
    """
    hand = Hand()
    await publish(topology, [b"a"])
    async with consuming(topology, hand):
        await eventually(lambda: len(hand.deliveries) == 1)
        first = hand.deliveries[0]
        first._channel.pending_acks.ack(999)  # a tag that the broker does not know
        first._channel.wake.set()
        await eventually(lambda: len(hand.deliveries) == 2)
        assert first.lost
        assert hand.deliveries[1].redelivered
        hand.deliveries[1].ack()


async def redeclare(amqp_url: str) -> None:
    async with rabbitmq.connect(amqp_url, "test") as connection:
        await topology.declare(connection)


async def test_deliveries_are_a_sign_of_life(
    topology: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A connection on which nothing but deliveries comes, so that the broker sends no heartbeat, is not given up.
    """
    monkeypatch.setattr(rabbitmq, "HEARTBEAT_SECONDS", 1)  # aiormq gives up after 6 s of silence
    caplog.set_level(logging.INFO, "orders.broker.consumer")
    hand = Hand()
    async with consuming(topology, hand), channel(topology) as publishing:
        until = asyncio.get_running_loop().time() + 8
        sent = 0
        while asyncio.get_running_loop().time() < until:
            await publishing.basic_publish(b"news", routing_key=WORK_QUEUE)
            sent += 1
            await eventually(lambda sent=sent: len(hand.deliveries) == sent)  # type: ignore[misc]
            hand.deliveries[-1].ack()

    assert sum("consuming" in record.message for record in caplog.records) == 1


DEATHS: list[object] = [
    {"queue": "elsewhere", "reason": "rejected"}, {"queue": WORK_QUEUE, "reason": "expired"},
    {"queue": WORK_QUEUE, "reason": "rejected"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"x-death": DEATHS}, "expired"),
        ({"x-death": DEATHS[:1]}, None),
        ({}, None),
        ({"x-death": "expired"}, None),
        ({"x-death": [{}]}, None),
        ({"x-death": DEATHS, "long": "x" * LARGEST_HEADER_BYTES}, None),
    ],
)
def test_reason_of_death(headers: dict[str, Any], reason: str | None) -> None:
    """
    A message tells why a queue dead-lettered it last; a forged header tells nothing, and harms nothing.
    """
    header = ContentHeader(0, 1, Basic.Properties(headers=headers)).marshal()
    wire: Any = None

    assert Delivery(wire, 1, header, b"x", 1, redelivered=False).reason_of_death(WORK_QUEUE) == reason
    for end in range(0, min(len(header), 200), 7):
        Delivery(wire, 1, header[:end], b"x", 1, redelivered=False).reason_of_death(WORK_QUEUE)


async def test_the_next_broker_after_an_unanswered_consume(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A node that its cluster has lost takes the connection, and does not answer to a consume: the next one comes first.
    """
    monkeypatch.setattr("orders.broker.consumer.CALL_SECONDS", 1.0)
    hand = Hand()
    await publish(topology, [b"news"])
    async with amqp_wire_to(topology) as lost:
        lost.lose(CONSUME_OK, BASIC_DELIVER)
        async with consuming(f"{lost.url(topology)},{topology}", hand):
            await eventually(lambda: hand.bodies() == [b"news"])
            assert lost.accepted == 1
            hand.deliveries[0].ack()


async def test_an_idle_queue_that_does_not_answer(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A consumer that receives nothing asks whether its queue is really empty, and leaves a node that does not know.
    """
    monkeypatch.setattr("orders.broker.consumer.CALL_SECONDS", 1.0)
    monkeypatch.setattr("orders.broker.consumer.IDLE_SECONDS", 0.3)
    hand = Hand()
    async with amqp_wire_to(topology) as lost, consuming(f"{lost.url(topology)},{topology}", hand):
        lost.lose(BASIC_DELIVER, GET_EMPTY)
        await publish(topology, [b"news"])
        await eventually(lambda: hand.bodies() == [b"news"], 20)
        assert lost.accepted == 1
        hand.deliveries[0].ack()


async def test_an_idle_queue_that_answers(
    topology: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    While its queue says that it is empty, or an order is in hand, an idle consumer keeps its connection.
    """
    monkeypatch.setattr("orders.broker.consumer.IDLE_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "orders.broker.consumer")
    hand = Hand()
    async with amqp_wire_to(topology) as wire, consuming(wire.url(topology), hand):
        carried = wire.carried
        await eventually(lambda: wire.carried > carried + 1000)  # some questions and answers
        await publish(topology, [b"news"])
        await eventually(lambda: b"news" in hand.bodies())
        hand.deliveries[-1].ack()

    assert sum("consuming" in record.message for record in caplog.records) == 1
