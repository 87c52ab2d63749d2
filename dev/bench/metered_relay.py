"""The relay as it is, with a meter on its publisher: `python -m dev.bench.metered_relay [gathered]`.

`gathered` publishes through aiormq's own `basic_publish`, all of a wave at once and their confirms gathered: what a
careful author writes without a channel of his own. All else is the relay's.

When it ends it writes to BENCH_METER how long its waves took, and when single messages were confirmed.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import aiormq.channel
import msgspec
from pamqp.commands import Basic

import relay.__main__
from relay.message import CONFIRMED, Answer, Message, Reply
from relay.publisher import Publisher

FEW = 8  # waves of so many are an idle relay's: the time of each confirm is kept


class Meter(msgspec.Struct):
    """How long waves took, and when single messages were confirmed."""

    waves: int = 0
    wave_seconds: float = 0.0
    confirmed_at: list[tuple[str, float]] = []


METER = Meter()


class MeteredPublisher(Publisher):
    """Reads the meter around each wave."""

    async def publish(self, wave: list[Message], until: float) -> dict[int, Reply]:
        began = time.monotonic()
        replies = await super().publish(wave, until)
        ended = time.monotonic()
        METER.wave_seconds += ended - began
        METER.waves += 1
        if len(wave) <= FEW:
            METER.confirmed_at += [(message.event_id, ended) for message in wave]
        return replies


class GatheredPublisher(MeteredPublisher):
    """Publishes each message through aiormq's own call."""

    _gathering: aiormq.channel.Channel | None = None

    async def _publish(self, wave: list[Message], until: float) -> dict[int, Reply]:
        assert self._connection is not None
        channel = self._gathering
        if channel is None or channel.is_closed:
            opened = await self._connection.channel(publisher_confirms=True, frame_buffer_size=0)
            assert isinstance(opened, aiormq.channel.Channel)
            channel = self._gathering = opened
        answers = await asyncio.gather(*(self._one(channel, message) for message in wave))
        return dict(answers)

    async def _one(self, channel: aiormq.channel.Channel, message: Message) -> tuple[int, Reply]:
        properties = Basic.Properties(
            delivery_mode=2,
            message_id=message.event_id,
            content_type=message.content_type,
            headers=msgspec.json.decode(message.headers, type=dict[str, Any]),
        )
        answer = await channel.basic_publish(
            message.body, exchange=message.exchange, routing_key=message.routing_key, mandatory=True,
            properties=properties, wait=False, timeout=30,
        )  # fmt: skip
        return message.id, CONFIRMED if isinstance(answer, Basic.Ack) else Reply(Answer.NACKED)


def main() -> None:
    """Run the relay, then tell."""
    gathered = "gathered" in sys.argv[1:]
    del sys.argv[1:]
    vars(relay.__main__)["Publisher"] = GatheredPublisher if gathered else MeteredPublisher
    try:
        relay.__main__.main()
    finally:
        Path(os.environ["BENCH_METER"]).write_bytes(msgspec.json.encode(METER))


if __name__ == "__main__":
    main()
