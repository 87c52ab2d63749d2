"""What has to be there before the first message, as far as AMQP lets us see it."""

import aiormq
import aiormq.exceptions

from relay.publisher import RPC_SECONDS, BrokerLost


class TopologyWrong(Exception):
    """A message would be lost or refused on this topology."""


async def verify(connection: aiormq.Connection, exchanges: tuple[str, ...], queues: tuple[str, ...]) -> None:
    """Refuse a broker without these exchanges and queues.

    Passive first: an active declare would create what is missing, and hide it.
    """
    for exchange in exchanges:
        if not await _exists(connection, "exchange", exchange):
            raise TopologyWrong(
                f"exchange {exchange!r} does not exist in vhost {connection.vhost!r}: "
                "declare it (`orders topology`), or name the right ones in RELAY_EXCHANGES"
            )
    for queue in queues:
        if not await _exists(connection, "queue", queue):
            raise TopologyWrong(
                f"queue {queue!r} does not exist in vhost {connection.vhost!r}: "
                "declare it (`orders topology`), or name the right ones in RELAY_REQUIRED_QUEUES"
            )


async def _exists(connection: aiormq.Connection, kind: str, name: str) -> bool:
    try:
        channel = await connection.channel(publisher_confirms=False, timeout=RPC_SECONDS)
        try:
            if kind == "exchange":
                await channel.exchange_declare(name, passive=True, timeout=RPC_SECONDS)
            else:
                await channel.queue_declare(name, passive=True, timeout=RPC_SECONDS)
        finally:
            if not channel.is_closed:
                await channel.close()
    except aiormq.exceptions.ChannelNotFoundEntity:
        return False
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise TopologyWrong(f"{kind} {name!r}: {error}: grant this user configure or read on it") from error
    except (TimeoutError, aiormq.exceptions.AMQPError, OSError) as error:
        raise BrokerLost(str(error) or repr(error)) from error
    return True
