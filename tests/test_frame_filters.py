"""The frame filters of the relay and of the consumers, which are the same to the byte."""

import asyncio
from collections.abc import Callable
from typing import Any

import pamqp.frame
import pytest
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

import orders.broker.frame_filter
import relay.frame_filter

HEARTBEAT: bytes = pamqp.frame.marshal(Heartbeat(), 0)

each_filter = pytest.mark.parametrize(
    "make", [relay.frame_filter.FrameFilter, orders.broker.frame_filter.FrameFilter], ids=["relay", "orders"]
)


class Inner(asyncio.Protocol):
    """Who gets what is not taken."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = False

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> None:
        self.ended = True


class Handler:
    """Takes confirms, and nothing else."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def __call__(self, kind: int, payload: bytes) -> bool:
        if kind == 1 and payload.startswith(b"\0\x3c\0\x50"):
            self.got.append(payload)
            return True
        return False


def marshal(frame: Any, channel: int) -> bytes:
    return pamqp.frame.marshal(frame, channel)


@each_filter
async def test_cut_at_each_byte(make: Callable[[Inner], Any]) -> None:
    """
    What is for the handler gets to it and to nobody else, wherever the stream is cut; the rest is handed on whole.
    """
    confirms = [marshal(Basic.Ack(delivery_tag=tag), 1) for tag in (1, 2)]
    others = [
        marshal(Basic.Ack(delivery_tag=3), 2),  # another channel's
        marshal(ContentHeader(body_size=5), 1),
        marshal(ContentBody(b"hello"), 1),
        HEARTBEAT,
    ]
    stream = confirms[0] + b"".join(others[:2]) + confirms[1] + b"".join(others[2:])

    for cut in range(len(stream) + 1):
        inner, handler = Inner(), Handler()
        frame_filter = make(inner)
        frame_filter.register(1, handler)
        frame_filter.data_received(stream[:cut])
        frame_filter.data_received(stream[cut:])

        assert handler.got == [confirm[7:-1] for confirm in confirms]
        # Once a second aiormq is told that the broker lives, by a heartbeat behind what was handed on.
        assert inner.got.replace(HEARTBEAT, b"", 1).replace(HEARTBEAT, b"") == b"".join(others[:3])
        assert inner.got.count(HEARTBEAT) == 2


@each_filter
async def test_a_channel_that_is_given_up(make: Callable[[Inner], Any]) -> None:
    """
    While another channel is opened, the answers on the last one still get to its handler; on those before, no more.
    """
    inner, handlers = Inner(), [Handler(), Handler(), Handler()]
    frame_filter = make(inner)
    for number, handler in enumerate(handlers, 1):
        frame_filter.register(number, handler)

    frame_filter.data_received(b"".join(marshal(Basic.Ack(delivery_tag=7), number) for number in (1, 2, 3)))

    assert [len(handler.got) for handler in handlers] == [0, 1, 1]


@each_filter
async def test_what_is_no_frame_is_handed_on(make: Callable[[Inner], Any]) -> None:
    """
    A broker of another protocol, a frame without its end, and half a frame before the end: aiormq has words for them.
    """
    for data in (b"AMQP\0\0\x09\x01", marshal(Basic.Ack(delivery_tag=1), 1)[:-1] + b"\0"):
        inner = Inner()
        frame_filter = make(inner)
        frame_filter.register(1, Handler())
        frame_filter.data_received(data)
        assert inner.got == data

    inner = Inner()
    frame_filter = make(inner)
    frame_filter.data_received(b"\x01\0")
    assert (inner.got, inner.ended) == (b"", False)
    frame_filter.eof_received()
    assert (inner.got, inner.ended) == (b"\x01\0", True)
