"""What has to be there before the first message, as far as AMQP lets us see it.

Passive first, since an active declare would create what is missing and so hide it. Then the same thing is declared
again with arguments: the broker answers 406 with the first argument that differs and what it is, so a few such answers
tell the whole shape without the right to read it anywhere.
"""

import logging
import re
from typing import Any

import aiormq
import aiormq.exceptions

from relay.management import Management
from relay.publisher import RPC_SECONDS, BrokerLost

log = logging.getLogger("relay")

MOST_ARGUMENTS = 30

_DIFFERS = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for (?:exchange|queue) '.*' in vhost '.*': "
    r"received .+ but current is (?:the value )?'(?P<value>[^']*)'(?: of type '(?P<type>[^']+)')?"
)


class TopologyWrong(Exception):
    """A message would be lost or refused on this topology."""


async def verify(
    connection: aiormq.Connection, exchanges: tuple[str, ...], queues: tuple[str, ...], management_url: str = ""
) -> None:
    """Refuse a broker without these exchanges and queues, or with ones that would lose a confirmed message."""
    for kind, names, setting in (("exchange", exchanges, "EXCHANGES"), ("queue", queues, "REQUIRED_QUEUES")):
        for name in names:
            if not await _exists(connection, kind, name):
                raise TopologyWrong(
                    f"{kind} {name!r} does not exist in vhost {connection.vhost!r}: "
                    f"declare it (`orders topology`), or name the right ones in RELAY_{setting}"
                )
            complaint = judge_shape(kind, name, await _shape(connection, kind, name))
            if complaint:
                raise TopologyWrong(complaint)
    if management_url:
        management = Management(management_url, connection.vhost)
        for queue in queues:
            complaint = judge_queue(queue, exchanges, await management.queue(queue), await management.bindings(queue))
            if complaint:
                raise TopologyWrong(complaint)


def judge_shape(kind: str, name: str, shape: dict[str, Any]) -> str:
    """Say what is wrong with an exchange or queue of this shape, or nothing."""
    mend = f"delete it when it is empty, and declare it durable (`orders topology` declares what {name!r} should be)"
    if shape.get("durable") == "false":
        return f"{kind} {name!r} is not durable, and a restart of the broker would lose it: {mend}"
    if shape.get("auto_delete") == "true":
        return f"{kind} {name!r} deletes itself when it is unused: {mend}"
    if shape.get("internal") == "true":
        return f"exchange {name!r} is internal, and takes no messages from clients: {mend}"
    return ""


def judge_queue(queue: str, exchanges: tuple[str, ...], found: dict[str, Any], sources: list[str]) -> str:
    """Say what is wrong with a required queue, its policies and its bindings, or nothing."""
    if exchanges and not set(sources) & set(exchanges):
        return (
            f"queue {queue!r} is bound to none of {', '.join(exchanges)}: "
            "bind it (`orders topology`), or required messages come back"
        )
    limits = {**found.get("arguments", {}), **found.get("effective_policy_definition", {})}
    limits = {name.removeprefix("x-"): value for name, value in limits.items()}
    bounded = [name for name in ("max-length", "max-length-bytes") if name in limits]
    if bounded and limits.get("overflow") != "reject-publish":
        return (
            f"queue {queue!r} has {bounded[0]} without overflow=reject-publish, so it drops messages it confirmed: "
            "set overflow in the policy, or take the limit away"
        )
    if "message-ttl" in limits and "dead-letter-exchange" not in limits:
        return f"queue {queue!r} drops messages after message-ttl: take it away, or set a dead-letter-exchange"
    return ""


async def _exists(connection: aiormq.Connection, kind: str, name: str) -> bool:
    try:
        await _declare(connection, kind, name, passive=True)
    except aiormq.exceptions.ChannelNotFoundEntity:
        return False
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise TopologyWrong(f"{kind} {name!r}: {error}: grant this user access to it") from error
    return True


async def _shape(connection: aiormq.Connection, kind: str, name: str) -> dict[str, Any]:
    """Return what the broker's complaints about our declarations tell of it."""
    shape: dict[str, Any] = {}
    options: dict[str, Any] = {"durable": True} if kind == "queue" else {"durable": True, "exchange_type": "topic"}
    arguments: dict[str, Any] = {}
    for _ in range(MOST_ARGUMENTS):
        try:
            await _declare(connection, kind, name, **options, arguments=arguments)
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            differs = _DIFFERS.search(str(error))
            if differs is None or differs["name"] in shape:
                return shape
            shape[differs["name"]] = differs["value"]
            match differs["name"]:
                case "type":
                    options["exchange_type"] = differs["value"]
                case "durable" | "auto_delete" | "internal":
                    return shape
                case argument:
                    is_number = (differs["type"] or "") not in ("longstr", "")
                    arguments[argument] = int(differs["value"]) if is_number else differs["value"]
        except (aiormq.exceptions.ChannelAccessRefused, ValueError):
            return shape  # no right to declare, or a value that cannot be said: what is known has to do
        else:
            break
    return shape


async def _declare(connection: aiormq.Connection, kind: str, name: str, **options: Any) -> None:
    try:
        channel = await connection.channel(publisher_confirms=False, timeout=RPC_SECONDS)
        try:
            if kind == "exchange":
                await channel.exchange_declare(name, timeout=RPC_SECONDS, **options)
            else:
                await channel.queue_declare(name, timeout=RPC_SECONDS, **options)
        finally:
            if not channel.is_closed:
                await channel.close()
    except (
        aiormq.exceptions.ChannelNotFoundEntity,
        aiormq.exceptions.ChannelAccessRefused,
        aiormq.exceptions.ChannelPreconditionFailed,
    ):
        raise
    except (TimeoutError, aiormq.exceptions.AMQPError, OSError) as error:
        raise BrokerLost(str(error) or repr(error)) from error
