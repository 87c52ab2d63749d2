"""The exchanges, queues and bindings."""

from urllib.parse import urlsplit, urlunsplit

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


@pytest.mark.parametrize("what", ["declare", "verify"])
async def test_a_refusal_is_not_waited_for(amqp_url: str, what: str) -> None:
    """
    A missing vhost and a wrong password say so at once, in the broker's words; a wait would not help.
    """
    parts = urlsplit(amqp_url)
    host = parts.netloc.rpartition("@")[2]
    no_vhost = urlunsplit(parts._replace(path="/nowhere"))
    with pytest.raises(StartupError, match=r"refuses AMQP_URL \(.*: 530 NOT_ALLOWED - vhost nowhere not found\)"):
        await wait_and(what, no_vhost, 60)
    with pytest.raises(StartupError, match=r"refuses AMQP_URL \(.*: 403 ACCESS_REFUSED - ") as caught:
        await wait_and(what, f"amqp://guest:secret@{host}/,{no_vhost}", 60)
    assert "secret" not in str(caught.value)


async def test_a_refusal_of_some_is_waited_for(amqp_url: str) -> None:
    """
    While one of several brokers is away, a refusal by another is not the last word.
    """
    no_vhost = urlunsplit(urlsplit(amqp_url)._replace(path="/nowhere"))
    with pytest.raises(StartupError, match=r"no connection to RabbitMQ in 0 s .* vhost nowhere not found"):
        await wait_and("verify", f"amqp://127.0.0.1:1,{no_vhost}", 0.1)
