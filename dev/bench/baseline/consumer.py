"""The consumer: at most 20 orders at once, each worked for a while, then done."""

import asyncio
import os
import random

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from dev.bench.baseline.api import QUEUE, Order, sessions

AT_ONCE = 20


async def work(message: AbstractIncomingMessage, at_once: asyncio.Semaphore) -> None:
    """Bring an order to its end."""
    async with at_once, message.process(), sessions() as session:
        order = await session.get(Order, int(message.body))
        if order is None:
            return
        order.status = "processing"
        await session.commit()
        await asyncio.sleep(
            random.uniform(
                float(os.environ.get("WORK_MIN_SECONDS", "0.01")), float(os.environ.get("WORK_MAX_SECONDS", "10"))
            )
        )
        order.status = "done"
        await session.commit()


async def main() -> None:
    """Consume until the process is ended."""
    at_once = asyncio.Semaphore(AT_ONCE)
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    tasks: set[asyncio.Task[None]] = set()
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=AT_ONCE)
        queue = await channel.declare_queue(QUEUE, durable=True)
        async with queue.iterator() as messages:
            async for message in messages:
                task = asyncio.create_task(work(message, at_once), name="order")
                tasks.add(task)
                task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(main())
