"""Connections to one of several brokers."""

import asyncio
import socket

import pytest

from orders.broker import rabbitmq
from orders.broker.rabbitmq import BrokerUnavailable


async def test_the_first_that_answers(amqp_url: str) -> None:
    """
    A broker that is away, and a URL that is none, leave the others.
    """
    async with rabbitmq.connect(f"amqp://127.0.0.1:1, amqp://host:port, {amqp_url}", "a test") as connection:
        assert not connection.is_closed
    assert connection.is_closed


async def test_none_answers() -> None:
    """
    The error names each host with its reason, and no password.
    """
    with pytest.raises(BrokerUnavailable) as caught:
        async with rabbitmq.connect("amqp://guest:secret@127.0.0.1:1,amqp://127.0.0.1:2,amqp://host:port", "a test"):
            pass
    message = str(caught.value)
    assert message.startswith("127.0.0.1:1: ")
    assert "; 127.0.0.1:2: " in message
    assert "no URL" in message
    assert "secret" not in message


async def test_a_port_that_closes_at_once() -> None:
    """
    A peer that takes the connection and closes it is an absent broker, and no crash.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        loop = asyncio.get_running_loop()

        async def close_at_once() -> None:
            connection, _ = await loop.sock_accept(server)
            connection.close()

        closing = asyncio.create_task(close_at_once())
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
            async with rabbitmq.connect(f"amqp://127.0.0.1:{port}", "a test"):
                pass
        await closing
