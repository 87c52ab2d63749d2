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
HEARTBEAT_SECONDS = 3  # aiormq gives a silent broker up after three of these and a little


class BrokerUnavailable(OrdersError):
    """The broker cannot be reached."""


@contextlib.asynccontextmanager
async def connect(urls: str, name: str, wire: TransportFactory | None = None) -> AsyncIterator[AbstractConnection]:
    """Connect to the first of the comma-separated `urls` that answers; raise BrokerUnavailable if none does.

    `wire` opens what is below, if aiormq's own is not to.
    """
    connection = await _connect(urls, name, wire)
    try:
        yield connection
    finally:
        with contextlib.suppress(AMQPError, OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.close()


async def _connect(urls: str, name: str, wire: TransportFactory | None) -> AbstractConnection:
    reasons = []
    for each in urls.split(","):
        try:
            url = URL(each.strip()).update_query(heartbeat=HEARTBEAT_SECONDS, name=name)
        except ValueError as error:  # its words name no more of the URL than the port
            reasons.append(f"no URL: {error}")
            continue
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await aiormq.connect(url, transport_factory=wire)
        except TimeoutError:
            reasons.append(f"{url.host}:{url.port}: no answer in {CONNECT_SECONDS:.0f} s")
        except StopAsyncIteration:
            # aiormq's word for a peer that takes the connection and closes it, as a port of Docker's does while the
            # container behind it is down. Let through, it would end the process as a RuntimeError.
            reasons.append(f"{url.host}:{url.port}: the connection was closed at once")
        except (AMQPError, OSError, EOFError, ValueError) as error:
            reasons.append(f"{url.host}:{url.port}: {str(error) or type(error).__name__}")
    raise BrokerUnavailable("; ".join(reasons))
