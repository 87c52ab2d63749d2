"""What relay/channel.py leans on in aiormq without a promise: an upgrade that moves it fails here."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from importlib.metadata import version

import aiormq
import pamqp.frame
import pytest
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp.base import Frame
from pamqp.commands import Basic

from relay.channel import NACKED, BatchChannel
from relay.frame_filter import METHOD, FilteredTransport
from relay.message import CONFIRMED, Answer, Message
from tests.relay.messages import make_message


@pytest.fixture
async def channel(topology: str) -> AsyncIterator[BatchChannel]:
    wire = FilteredTransport()
    async with aiormq.connect(topology, transport_factory=wire) as connection:
        assert isinstance(connection, aiormq.Connection)
        opened = BatchChannel(connection, 1)
        wire.register(1, opened.take)
        connection.channels[1] = opened
        await opened.open()
        yield opened


async def send(channel: BatchChannel, wave: list[Message]) -> dict[int, Answer]:
    payload = b"".join(map(channel.encoder.encode, wave))
    answered = await channel.send(wave, payload)
    async with asyncio.timeout(10):
        await answered
    replies, silent = channel.replies()
    assert silent == []
    return {row_id: reply.answer for row_id, reply in replies.items()}


def take(channel: BatchChannel, frame: Frame) -> None:
    """Have the channel take a method, as the broker would send it."""
    assert channel.take(METHOD, pamqp.frame.marshal(frame, 1)[7:-1])


def test_version() -> None:
    """
    The pin is what this was read against.
    """
    assert version("aiormq").startswith("7.")


def test_hooks() -> None:
    """
    The reader calls these methods by name, and `send` uses these attributes.
    """
    assert "await self._on_close_frame(frame)" in inspect.getsource(Channel._reader)
    assert inspect.iscoroutinefunction(Channel._on_close_frame)
    assert list(inspect.signature(ChannelFrame).parameters) == ["payload", "should_close", "drain_future"]
    assert isinstance(inspect.getattr_static(Channel, "lock"), property)


async def test_a_wave_is_confirmed(channel: BatchChannel) -> None:
    """
    A thousand messages are one write, and each has its confirm; the next wave counts on from there.
    """
    for _ in range(3):
        wave = [make_message(at, str(at)) for at in range(1000)]

        assert await send(channel, wave) == dict.fromkeys(range(1000), Answer.CONFIRMED)

    assert channel.delivery_tag == 3000


async def test_a_return_is_not_a_success(channel: BatchChannel) -> None:
    """
    The confirm after a return does not make the returned message a sent one, nor its neighbour a returned one.
    """
    wave = [
        make_message(at, str(at), routing_key="nobody" if at % 3 == 0 else "order.placed", body=b"x" * 5000)
        for at in range(90)
    ]

    answers = await send(channel, wave)

    assert {row_id for row_id, answer in answers.items() if answer is Answer.RETURNED} == set(range(0, 90, 3))


async def test_a_nack_is_told(channel: BatchChannel) -> None:
    """
    A full queue nacks, and the nack is of the right message.
    """
    await channel.queue_declare("full", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await channel.queue_bind("full", "orders", "full")
    assert await send(channel, [make_message(1, routing_key="full")]) == {1: Answer.CONFIRMED}

    answers = await send(channel, [make_message(2, routing_key="full"), make_message(3)])

    assert answers == {2: Answer.NACKED, 3: Answer.CONFIRMED}


async def test_a_close_tells_why_and_who_is_silent(channel: BatchChannel) -> None:
    """
    A missing exchange closes the channel with 404: what was outstanding is silent, and the words are kept.
    """
    wave = [make_message(1, exchange="gone")]
    answered = await channel.send(wave, channel.encoder.encode(wave[0]))
    await asyncio.wait({answered}, timeout=10)

    assert answered.exception() is not None
    assert channel.closed_by_broker is not None
    code, text = channel.closed_by_broker
    assert code == 404
    assert "no exchange 'gone'" in text
    assert channel.replies() == ({}, wave)


async def test_confirms_in_any_form(channel: BatchChannel) -> None:
    """
    Single, multiple and out of order; late ones of an answered wave change nothing.
    """
    await send(channel, [make_message(1), make_message(2)])
    wave = [make_message(at, str(at)) for at in range(3, 9)]
    async with channel.lock:
        channel._first, channel._wave, channel._replies = 3, wave, [None] * 6
        channel._floor, channel._left, channel._places, channel._returns = 0, 6, {}, {}
    answered = channel._answered = channel.create_future()

    take(channel, Basic.Ack(delivery_tag=2, multiple=True))
    take(channel, Basic.Ack(delivery_tag=5))
    assert [message.id for message in channel.replies()[1]] == [3, 4, 6, 7, 8]
    take(channel, Basic.Nack(delivery_tag=4, multiple=True))
    take(channel, Basic.Ack(delivery_tag=99, multiple=True))
    assert not answered.done()
    take(channel, Basic.Ack(delivery_tag=8, multiple=True))

    assert answered.done()
    replies, silent = channel.replies()
    assert silent == []
    assert replies == {3: NACKED, 4: NACKED, 5: CONFIRMED, 6: CONFIRMED, 7: CONFIRMED, 8: CONFIRMED}
