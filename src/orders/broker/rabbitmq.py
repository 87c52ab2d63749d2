"""A connection to RabbitMQ that notices when the broker is gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiormq
from aiormq.abc import AbstractConnection
from aiormq.exceptions import AMQPError
from yarl import URL

from orders.broker.frame_filter import FilteredTransport
from orders.model.errors import OrdersError, StartupError

CONNECT_SECONDS = 5.0  # aiormq has no limit of its own
HEARTBEAT_SECONDS = 3  # aiormq drops the connection after a silence of three heartbeats


class BrokerUnavailable(OrdersError):
    """The broker cannot be reached."""


class BrokerRefused(BrokerUnavailable, StartupError):
    """Every broker refuses the password or the vhost: at a start no wait helps, later a rotation may pass."""


@contextlib.asynccontextmanager
async def connect(
    urls: str, name: str, transport: FilteredTransport | None = None
) -> AsyncIterator[AbstractConnection]:
    """Connect to the first of the comma-separated `urls` that answers, and close the connection at the end.

    `name` is shown in RabbitMQ's list of connections; `transport` opens the socket. Raises BrokerUnavailable if no URL
    answers within CONNECT_SECONDS, and BrokerRefused if each one refuses.
    """
    connection = await _connect(urls, name, transport or FilteredTransport())
    try:
        yield connection
    finally:
        with contextlib.suppress(AMQPError, OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.close()


def after(urls: str, connection: AbstractConnection) -> str:
    """Return `urls` in the order in which to try them after this connection was lost: its own one last.

    It may lead to a node that its cluster has lost, which takes every connection and has nothing to say of a queue.
    """
    listed = urls.split(",")
    for at, text in enumerate(listed, 1):
        with contextlib.suppress(ValueError):
            url = URL(text.strip())
            if url.host == connection.url.host and url.port in (None, connection.url.port):
                return ",".join([*listed[at:], *listed[:at]])
    return urls


async def _connect(urls: str, name: str, transport: FilteredTransport) -> AbstractConnection:
    reasons = []
    refusals = 0
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
            refusals += bool(transport.refusal)
            reasons.append(f"{url.host}:{url.port}: {transport.refusal or str(error) or type(error).__name__}")
    why = "; ".join(reasons)
    if refusals == len(reasons):
        raise BrokerRefused(f"RabbitMQ refuses AMQP_URL ({why}): correct it, or make this user or vhost")
    raise BrokerUnavailable(why)
