"""The wire that knows AMQP: confirms in another order are the same confirms, and a closed channel harms no message."""

import random
import time
from urllib.parse import urlsplit

import pamqp.frame
from pamqp.base import Frame
from pamqp.commands import Basic, Channel

from dev.chaos.amqp_wire import AmqpWire, Confirms, Frames, ack_of
from dev.chaos.broker_faults import ask_for_nothing
from relay.message import Answer
from relay.publisher import Publisher
from tests.relay.messages import make_message

CHANNEL = 7


def frame(command: Frame) -> bytes:
    """A method on our channel, as pamqp puts it."""
    return bytes(pamqp.frame.marshal(command, CHANNEL))


def test_frames_are_found_wherever_the_bytes_are_cut() -> None:
    """
    A greeting and frames of any size come out as they went in, and none of them early.
    """
    said = [b"AMQP\x00\x00\x09\x01", frame(Basic.Ack(3, True)), frame(Basic.Publish(exchange="orders"))]
    stream = b"".join(said)
    rng = random.Random(1)
    for _ in range(200):
        cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(4))
        frames = Frames()
        heard = [
            each
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
            for each in frames.feed(stream[start:end])
        ]

        assert said == heard


def test_an_ack_for_many_is_those_that_were_not_answered_before() -> None:
    """
    Each tag is answered once, whether alone or with others; a channel that opens counts from one again.
    """
    confirms = Confirms()

    assert confirms.note(frame(Basic.Ack(2, False))) == [2]
    assert confirms.note(frame(Basic.Nack(3, False))) == [3]
    assert confirms.note(frame(Basic.Ack(5, True))) == [1, 4, 5]
    assert confirms.note(frame(Basic.Ack(6, True))) == [6]
    assert confirms.note(frame(Channel.OpenOk())) == []
    assert confirms.note(frame(Basic.Ack(1, True))) == [1]


def test_shuffled_confirms_are_the_same_confirms() -> None:
    """
    Every tag is told once and alone, after all that is no ack; a channel that closes lets nothing be moved.
    """
    returned = frame(Basic.Return(312, "NO_ROUTE", "orders", "order.placed"))
    frames = [frame(Basic.Ack(40, True)), returned, frame(Basic.Ack(41, False))]

    told, moved = Confirms().shuffled(frames)

    assert returned == told[0]
    assert sorted(ack_of(CHANNEL, tag) for tag in range(1, 42)) == sorted(told[1:])
    assert moved > 0
    closing = [frame(Basic.Ack(2, True)), frame(Channel.Close(404, "NOT_FOUND", 0, 0))]
    assert (closing, 0) == Confirms().shuffled(closing)


def test_our_ack_is_pamqps() -> None:
    """
    Byte for byte.
    """
    assert frame(Basic.Ack(2**40, True)) == ack_of(CHANNEL, 2**40, multiple=True)


async def test_confirms_out_of_order_reach_their_messages(topology: str) -> None:
    """
    A relay's publisher is told of each message whatever the order, many times over.
    """
    parts = urlsplit(topology)
    async with AmqpWire(str(parts.hostname), int(parts.port or 5672)) as wire:
        publisher = Publisher([wire.url(topology)], confirm_seconds=5.0)
        wire.shuffle()
        for _ in range(5):
            wave = [make_message(at, str(at)) for at in range(100)]
            replies = await publisher.publish(wave, time.monotonic() + 10)
            assert {Answer.CONFIRMED} == {reply.answer for reply in replies.values()}
            assert len(wave) == len(replies)
        assert wire.moved > 0
        await publisher.close()


async def test_a_channel_that_is_closed_for_nothing_blames_no_message(topology: str) -> None:
    """
    The broker closes the channel in the middle of a wave over another's word: what was not confirmed is sent again.
    """
    parts = urlsplit(topology)
    async with AmqpWire(str(parts.hostname), int(parts.port or 5672)) as wire:
        publisher = Publisher([wire.url(topology)], confirm_seconds=5.0)
        await publisher.publish([make_message(0, "0")], time.monotonic() + 10)
        wire.interject(ask_for_nothing)
        replies = await publisher.publish([make_message(at, str(at)) for at in range(50)], time.monotonic() + 10)
        assert wire.interjected == 1
        assert {reply.answer for reply in replies.values()} <= {Answer.CONFIRMED, Answer.CLOSED_ROUTE}
        await publisher.close()
