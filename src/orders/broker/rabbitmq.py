"""A connection to RabbitMQ that notices when the broker is gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiormq
from aiormq.abc import AbstractConnection
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPError
from yarl import URL

from orders.model.errors import OrdersError

CONNECT_SECONDS = 5.0  # aiormq has no limit of its own
HEARTBEAT_SECONDS = 3  # aiormq drops the connection after a silence of three heartbeats


class BrokerUnavailable(OrdersError):
    """The broker cannot be reached."""


@contextlib.asynccontextmanager
async def connect(urls: str, name: str, transport: TransportFactory | None = None) -> AsyncIterator[AbstractConnection]:
    """Connect to the first of the comma-separated `urls` that answers, and close the connection at the end.

    `name` is shown in RabbitMQ's list of connections; `transport` opens the socket, None for aiormq's own. Raises
    BrokerUnavailable if no URL answers within CONNECT_SECONDS.
    """
    connection = await _connect(urls, name, transport)
    try:
        yield connection
    finally:
        with contextlib.suppress(AMQPError, OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.close()


async def _connect(urls: str, name: str, transport: TransportFactory | None) -> AbstractConnection:
    reasons = []
    for text in urls.split(","):
        try:
            url = URL(text.strip()).update_query(heartbeat=HEARTBEAT_SECONDS, name=name)
        except ValueError as error:  # the error names only the port, no password
            reasons.append(f"no URL: {error}")
            continue
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await aiormq.connect(url, transport_factory=transport)
        except TimeoutError:
            reasons.append(f"{url.host}:{url.port}: no answer in {CONNECT_SECONDS:.0f} s")
        except StopAsyncIteration:
            # aiormq raises it if the peer accepts the connection and closes it, as Docker's proxy does for a container
            # that is down. Unhandled, it would become a RuntimeError and end the process.
            reasons.append(f"{url.host}:{url.port}: the connection was closed at once")
        except (AMQPError, OSError, EOFError, ValueError) as error:
            reasons.append(f"{url.host}:{url.port}: {str(error) or type(error).__name__}")
    raise BrokerUnavailable("; ".join(reasons))
