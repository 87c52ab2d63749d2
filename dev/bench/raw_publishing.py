"""Publish to a quorum queue without a database: `python -m dev.bench.raw_publishing HOW URL ROWS BYTES`.

HOW is `in batches`, as the relay does, or `basic_publish`.
Prints the rate, and this process's CPU time for each message.
"""

import asyncio
import json
import sys
import time
import uuid

from dev.bench.metered_relay import GatheredPublisher
from relay.message import Answer, Message
from relay.publisher import Publisher

WAVE = 500  # the relay's own default


async def publish(how: str, amqp_url: str, rows: int, size: int) -> dict[str, float]:
    """Publish wave after wave, each when the one before is confirmed."""
    publisher = (Publisher if how == "in batches" else GatheredPublisher)([amqp_url], 30.0)
    await publisher.connect()
    headers = '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"}'
    content_type, body, now = "application/cloudevents+json", b"x" * size, time.time()
    messages = [
        Message(
            n, str(uuid.uuid4()), "", "orders", "order.placed", True, content_type, headers, body, now, False, False
        )
        for n in range(rows)
    ]
    began, cpu = time.monotonic(), time.process_time()
    for start in range(0, rows, WAVE):
        replies = await publisher.publish(messages[start : start + WAVE], time.monotonic() + 30)
        assert all(reply.answer is Answer.CONFIRMED for reply in replies.values())
    passed, spent = time.monotonic() - began, time.process_time() - cpu
    await publisher.close()
    return {"messages_per_second": rows / passed, "cpu_us_per_message": spent / rows * 1e6}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(publish(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
