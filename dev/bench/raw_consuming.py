"""Empty a full quorum queue and do nothing but ack: `python -m dev.bench.raw_consuming HOW URL ROWS PREFETCH`.

HOW is `our consumer`, as the worker has it, or `aiormq`, whose callback gets a task for each message.
Prints the rate from the first message to the last, and this process's CPU time for each message.
"""

import asyncio
import json
import sys
import time

import aiormq
from aiormq.abc import DeliveredMessage

from orders.broker import rabbitmq
from orders.broker.consumer import Consumer, Delivery

QUEUE = "orders.work"
SECONDS = 300.0  # for all of it


class Count:
    """How many came, when the first did, and what was spent since."""

    def __init__(self, rows: int) -> None:
        self.last = asyncio.Event()
        self._rows = rows
        self._seen = 0
        self._began = self._ended = (0.0, 0.0)

    def one_more(self) -> None:
        """Count a message."""
        if not self._seen:
            self._began = time.monotonic(), time.process_time()
        self._seen += 1
        if self._seen == self._rows:
            self._ended = time.monotonic(), time.process_time()
            self.last.set()

    def figures(self) -> dict[str, float]:
        passed, spent = (end - begin for begin, end in zip(self._began, self._ended, strict=True))
        return {"messages_per_second": self._rows / passed, "consumer_us_per_message": spent / self._rows * 1e6}


async def with_ours(amqp_url: str, prefetch: int, count: Count) -> None:
    """Ack as our worker does."""

    def take(delivery: Delivery) -> None:
        delivery.ack()
        count.one_more()

    consumer = Consumer(amqp_url, QUEUE, prefetch, take)
    running = asyncio.create_task(consumer.run(), name="consumer")
    await count.last.wait()
    consumer.stop()
    consumer.finish()
    await running


async def with_aiormq(amqp_url: str, prefetch: int, count: Count) -> None:
    """Ack as aiormq's manual has it."""
    async with rabbitmq.connect(amqp_url, "bench") as connection:
        channel = await connection.channel()
        await channel.basic_qos(prefetch_count=prefetch)

        async def take(message: DeliveredMessage) -> None:
            assert message.delivery_tag is not None
            await channel.basic_ack(message.delivery_tag, wait=False)
            count.one_more()

        await channel.basic_consume(QUEUE, take)
        await count.last.wait()


async def left(amqp_url: str) -> int:
    """Return how many messages the queue still has, once what was acked is gone."""
    async with rabbitmq.connect(amqp_url, "bench") as connection:
        channel: aiormq.abc.AbstractChannel = await connection.channel()
        declared = await channel.queue_declare(QUEUE, passive=True)
        return declared.message_count or 0


async def consume(how: str, amqp_url: str, rows: int, prefetch: int) -> dict[str, float]:
    """Empty the queue; the last ack's way is not on the clock."""
    count = Count(rows)
    async with asyncio.timeout(SECONDS):
        await (with_ours if how == "our consumer" else with_aiormq)(amqp_url, prefetch, count)
        for _ in range(100):
            if not await left(amqp_url):
                break
            await asyncio.sleep(0.1)
        else:
            raise TimeoutError("the queue is not empty, though every message was acked")
    return count.figures()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(consume(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
