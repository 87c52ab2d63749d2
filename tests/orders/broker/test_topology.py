"""The exchanges, queues and bindings."""

import aiormq
import pytest

from orders.broker.topology import DEAD_QUEUE, WORK_QUEUE, wait_and
from orders.model.errors import StartupError


async def test_declare_and_verify(amqp_url: str) -> None:
    """
    What is missing stops a process with the command that makes it; declaring is harmless to repeat.
    """
    with pytest.raises(StartupError, match=r"orders\.work is not there .* run `orders topology`"):
        await wait_and("verify", amqp_url, 5)
    for _ in range(2):
        await wait_and("declare", amqp_url, 5)
    await wait_and("verify", amqp_url, 5)


@pytest.mark.parametrize("queue", [WORK_QUEUE, DEAD_QUEUE])
async def test_each_queue_is_verified(topology: str, queue: str) -> None:
    """
    A worker needs both queues.
    """
    async with await aiormq.connect(topology) as connection:
        channel = await connection.channel()
        await channel.queue_delete(queue)
    with pytest.raises(StartupError, match=queue):
        await wait_and("verify", topology, 5)


async def test_another_shape(amqp_url: str) -> None:
    """
    A queue of other arguments is not replaced: the operator decides.
    """
    async with await aiormq.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.queue_declare(WORK_QUEUE, durable=True)
    with pytest.raises(StartupError, match="another shape"):
        await wait_and("declare", amqp_url, 5)


async def test_no_broker() -> None:
    """
    Without a broker the wait ends with one line.
    """
    with pytest.raises(StartupError, match="no connection to RabbitMQ in 0 s"):
        await wait_and("verify", "amqp://127.0.0.1:1", 0.1)
