"""What takes frames out of the stream to aiormq: the relay's sieve and the consumers', which do the same."""

import asyncio
from collections.abc import Callable
from typing import Any

import pamqp.frame
import pytest
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

import orders.broker.sieve
import relay.sieve

HEARTBEAT: bytes = pamqp.frame.marshal(Heartbeat(), 0)

each_sieve = pytest.mark.parametrize("make", [relay.sieve.Sieve, orders.broker.sieve.Sieve], ids=["relay", "orders"])


class Behind(asyncio.Protocol):
    """Who gets what is not taken."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = False

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> None:
        self.ended = True


class Taker:
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


@each_sieve
async def test_cut_at_each_byte(make: Callable[[Behind], Any]) -> None:
    """
    What is for the taker gets to it and to nobody else, wherever the stream is cut; the rest is handed on whole.
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
        behind, taker = Behind(), Taker()
        sieve = make(behind)
        sieve.offer(1, taker)
        sieve.data_received(stream[:cut])
        sieve.data_received(stream[cut:])

        assert taker.got == [confirm[7:-1] for confirm in confirms]
        # Once a second aiormq is told that the broker lives, by a heartbeat behind what was handed on.
        assert behind.got.replace(HEARTBEAT, b"", 1).replace(HEARTBEAT, b"") == b"".join(others[:3])
        assert behind.got.count(HEARTBEAT) == 2


@each_sieve
async def test_a_channel_that_is_given_up(make: Callable[[Behind], Any]) -> None:
    """
    While another channel is opened, the answers on the last one still get to its taker; on those before, no more.
    """
    behind, takers = Behind(), [Taker(), Taker(), Taker()]
    sieve = make(behind)
    for number, taker in enumerate(takers, 1):
        sieve.offer(number, taker)

    sieve.data_received(b"".join(marshal(Basic.Ack(delivery_tag=7), number) for number in (1, 2, 3)))

    assert [len(taker.got) for taker in takers] == [0, 1, 1]


@each_sieve
async def test_what_is_no_frame_is_handed_on(make: Callable[[Behind], Any]) -> None:
    """
    A broker of another protocol, a frame without its end, and half a frame before the end: aiormq has words for them.
    """
    for data in (b"AMQP\0\0\x09\x01", marshal(Basic.Ack(delivery_tag=1), 1)[:-1] + b"\0"):
        behind = Behind()
        sieve = make(behind)
        sieve.offer(1, Taker())
        sieve.data_received(data)
        assert behind.got == data

    behind = Behind()
    sieve = make(behind)
    sieve.data_received(b"\x01\0")
    assert (behind.got, behind.ended) == (b"", False)
    sieve.eof_received()
    assert (behind.got, behind.ended) == (b"\x01\0", True)
