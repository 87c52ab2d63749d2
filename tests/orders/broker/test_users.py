"""Each user of RabbitMQ reaches its own queues, and may do with them what its process does."""

import secrets
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import aiormq
import aiormq.exceptions
import pytest
from aiormq.abc import AbstractChannel

from dev.sandbox import roles
from dev.sandbox.servers import Servers
from dev.sandbox.vhosts import Management
from examples.mailer import write_mail
from orders.broker import rabbitmq
from orders.broker.topology import wait_and
from orders.subscriber import Subscription, declare
from tests.eventually import eventually

Act = Callable[[AbstractChannel], Awaitable[object]]


def publish(routing_key: str, exchange: str = "") -> Act:
    return lambda channel: channel.basic_publish(b"{}", exchange=exchange, routing_key=routing_key, mandatory=True)


def get(queue: str) -> Act:
    return lambda channel: channel.basic_get(queue)


ACTS: dict[str, Act] = {
    "publish to the work queue": publish("orders.work"),
    "publish to the dead letters": publish("orders.dead"),
    "publish an event": publish("order.placed", "orders"),
    "publish to the exchange of dead letters": publish("", "orders.dead"),
    "read the work queue": get("orders.work"),
    "read the dead letters": get("orders.dead"),
    "read the mailer's queue": get("mailer"),
    "make a queue": lambda channel: channel.queue_declare("mine", exclusive=True),
    "make an exchange": lambda channel: channel.exchange_declare("mine", auto_delete=True),
    "delete the work queue": lambda channel: channel.queue_delete("orders.work"),
    "purge the work queue": lambda channel: channel.queue_purge("orders.work"),
    "bind the mailer's queue": lambda channel: channel.queue_bind("mailer", "orders", "#"),
    "unbind the work queue": lambda channel: channel.queue_unbind("orders.work", "orders", "order.placed"),
}
MAY = {
    # The default exchange leads to every queue: the relay sends retries by it.
    "orders_relay": {"publish to the work queue", "publish to the dead letters", "publish an event"},
    "orders_worker": {"read the work queue", "read the dead letters", "purge the work queue"},
    "orders_operator": set(),
    "orders_read": set(),
}


async def allowed(url: str) -> set[str]:
    """What of the above a user is not refused."""
    found = set()
    async with rabbitmq.connect(url, "test") as connection:
        for name, act in ACTS.items():
            channel = await connection.channel()
            try:
                await act(channel)
            except aiormq.exceptions.ChannelAccessRefused:
                continue
            found.add(name)
            await channel.close()
    return found


@pytest.fixture
def subscriber_url(topology: str, servers: Servers) -> Iterator[str]:
    """A user with the permissions that docs/deployment.md gives to the subscription `mailer`."""
    assert servers.management_url is not None
    management, name = Management(servers.management_url), f"mailer_{secrets.token_hex(4)}"
    own = r"^mailer(\.dead)?$"
    management.let_in(
        name, "x", urlsplit(topology).path[1:], configure=own, write=own, read=r"^(mailer(\.dead)?|orders)$"
    )
    parts = urlsplit(topology)
    yield urlunsplit(parts._replace(netloc=f"{name}:x@{parts.netloc.rpartition('@')[2]}"))
    management.remove_user(name)


@pytest.mark.parametrize("name", MAY)
async def test_each_user_is_refused_what_is_not_its_work(name: str, topology: str, servers: Servers) -> None:
    """
    A user publishes, reads and declares what its process does, and nothing else; it sees that the queues are there.
    """
    assert roles.open_vhost(topology, servers.management_url)
    async with rabbitmq.connect(topology, "test") as connection:
        await declare(connection, Subscription("mailer", ("order.done",), write_mail))

    assert await allowed(roles.url_for(name, topology)) == MAY[name]
    await wait_and("verify", roles.url_for(name, topology), 5)


async def test_a_subscriber_has_its_own_queues_only(subscriber_url: str, topology: str) -> None:
    """
    A subscriber declares its queues, gets its events and gives one up to its own dead letters, with no right to
    publish to anybody else's queue.
    """
    async with rabbitmq.connect(subscriber_url, "test") as connection:
        for _ in range(2):
            await declare(connection, Subscription("mailer", ("order.done",), write_mail))
        async with rabbitmq.connect(topology, "test") as relay:
            await (await relay.channel()).basic_publish(b"{}", exchange="orders", routing_key="order.done")
        channel = await connection.channel()
        got = await channel.basic_get("mailer")
        await channel.basic_reject(got.delivery_tag or 0, requeue=False)

        async def is_dead() -> bool:
            return (await channel.basic_get("mailer.dead", no_ack=True)).body == b"{}"

        await eventually(is_dead)

    assert await allowed(subscriber_url) == {"read the mailer's queue", "bind the mailer's queue"}


async def test_a_subscribers_queue_of_an_earlier_version(topology: str) -> None:
    """
    A queue that dead-letters by the default exchange, as earlier versions declared it, stays and goes on working.
    """
    arguments = {
        "x-queue-type": "quorum", "x-delivery-limit": 1000, "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "mailer.dead", "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }  # fmt: skip
    async with rabbitmq.connect(topology, "test") as connection:
        channel = await connection.channel()
        await channel.queue_declare("mailer", durable=True, arguments=arguments)  # type: ignore[arg-type]
        await channel.queue_bind("mailer", "orders", "order.done")
        await channel.basic_publish(b"{}", exchange="orders", routing_key="order.done")

        await declare(connection, Subscription("mailer", ("order.done",), write_mail))

        channel = await connection.channel()
        got = await channel.basic_get("mailer")
        await channel.basic_reject(got.delivery_tag or 0, requeue=False)

        async def is_dead() -> bool:
            return (await channel.basic_get("mailer.dead", no_ack=True)).body == b"{}"

        await eventually(is_dead)
