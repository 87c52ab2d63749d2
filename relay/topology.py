"""Verifies the exchanges and queues before the first message, as far as AMQP shows them; declares them if asked to.

A passive declare comes first, since an active one would create what is missing, and so hide it. Then the relay declares
the same thing with arguments: the broker answers 406 with the first argument that differs and its value. A few such
answers show the whole shape, without any right to read it. The text of these answers is that of RabbitMQ 3.10 to 4.x;
if it changes, `shape_of` returns an empty shape and finds no fault.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import aiormq
import aiormq.exceptions

from relay.management import DELIVERY_LIMIT, Binding, Management, fault_of_limits, limit_faults
from relay.message import Route
from relay.publisher import RPC_SECONDS, BrokerLost, translated
from relay.settings import Settings, TopologySettings

log = logging.getLogger("relay")

MAX_ARGUMENTS = 30
# RabbitMQ compares this argument after all others, and creates no queue with our value of it: if the queue was deleted
# just now, the declare fails instead of creating it.
NEVER = "x-queue-leader-locator"
# A queue that is declared here may be worked by a consumer that crashes: RabbitMQ 4 drops a message after 20 returns.
QUEUE_ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
REMEDY = "`orders topology`, or `relay declare` for another service"

_DIFFERS = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for (?:exchange|queue) '.*' in vhost '.*': "
    r"received .+ but current is (?:none|(?:the value )?'(?P<value>[^']*)'(?: of type '(?P<type>[^']+)')?)"
)


class TopologyWrong(Exception):
    """A message would be lost or refused on this topology."""


async def verify(connection: aiormq.Connection, settings: Settings) -> None:
    """Verify the exchanges, required queues and required routes of the settings.

    Raises TopologyWrong if one is missing or would lose a confirmed message, BrokerLost, and ManagementUnavailable.
    """
    exchanges, queues = settings.exchange_names, settings.queue_names
    for kind, names, setting in (("exchange", exchanges, "EXCHANGES"), ("queue", queues, "REQUIRED_QUEUES")):
        for name in names:
            complaint = await complaint_about(connection, kind, name)
            if complaint:
                raise TopologyWrong(f"{complaint} (it is named in RELAY_{setting})")
    if settings.management_urls:
        management = Management(settings.management_urls, connection.vhost)
        bindings: list[Binding] = []
        for queue in queues:
            found = await management.bindings(queue)
            complaint = fault_of_queue(queue, exchanges, await management.queue(queue), found)
            if complaint:
                raise TopologyWrong(complaint)
            bindings += found
        for fault in await limit_faults(management, queues):
            raise TopologyWrong(fault.text)
        for route in settings.routes:
            if not leads_to_one(route, bindings):
                raise TopologyWrong(unbound(route, queues))


async def declare(connection: aiormq.Connection, settings: TopologySettings) -> None:
    """Declare the exchanges, the queue and its bindings that are missing; change nothing that is there.

    Raises TopologyWrong if one has another shape or this user may not declare it, and BrokerLost.
    """
    exchanges = dict.fromkeys([*settings.exchange_names, *(route.exchange for route in settings.routes)])
    options: dict[str, dict[str, Any]] = {
        "exchange": {"exchange_type": "topic"},
        "queue": {"arguments": QUEUE_ARGUMENTS},
    }
    wanted = [*(("exchange", name) for name in exchanges), *(("queue", name) for name in settings.queue_names)]
    for kind, name in wanted:
        if not await _exists(connection, kind, name):
            try:
                await _declare(connection, kind, name, durable=True, **options[kind])
            except (aiormq.exceptions.ChannelAccessRefused, aiormq.exceptions.ChannelPreconditionFailed) as error:
                raise TopologyWrong(f"{kind} {name!r} cannot be declared: {error}") from error
        complaint = fault_of_shape(kind, name, await shape_of(connection, kind, name))
        if complaint:
            raise TopologyWrong(complaint)
    for queue in settings.queue_names:
        await _bind(connection, queue, settings.routes)


async def _bind(connection: aiormq.Connection, queue: str, routes: Iterable[Route]) -> None:
    if connection.is_closed:
        raise BrokerLost("the connection is gone")
    refusals = (aiormq.exceptions.ChannelAccessRefused, aiormq.exceptions.ChannelNotFoundEntity)
    with translated(*refusals):
        channel = await connection.channel(publisher_confirms=False, timeout=RPC_SECONDS)
        try:
            for route in routes:
                await channel.queue_bind(queue, route.exchange, route.routing_key, timeout=RPC_SECONDS)
        except refusals as error:
            raise TopologyWrong(f"queue {queue!r} cannot be bound: {error}") from error
        finally:
            if not channel.is_closed:
                await channel.close()


async def complaint_about(connection: aiormq.Connection, kind: str, name: str) -> str:
    """Return what is wrong with an exchange or a required queue (`kind`: "exchange" or "queue"), "" if nothing is.

    Raises BrokerLost, and TopologyWrong if this user has no access.
    """
    if not await _exists(connection, kind, name):
        return f"{kind} {name!r} does not exist in vhost {connection.vhost!r}: declare it ({REMEDY})"
    return fault_of_shape(kind, name, await shape_of(connection, kind, name))


def unbound(route: Route, queues: Sequence[str]) -> str:
    """Return the complaint that a route leads to no required queue."""
    return f"no binding leads from {route} to {' or '.join(map(repr, queues))}: bind it ({REMEDY})"


def leads_to_one(route: Route, bindings: Iterable[Binding]) -> bool:
    """Return whether one of these bindings takes messages of this route."""
    return any(
        binding.source == route.exchange and matches(binding.routing_key, route.routing_key) for binding in bindings
    )


def matches(pattern: str, routing_key: str) -> bool:
    """Return whether a topic binding takes this routing key: `*` stands for one word, `#` for any number of words."""
    return _match(pattern.split("."), routing_key.split("."))


def _match(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return _match(pattern[1:], words) or (bool(words) and _match(pattern, words[1:]))
    return bool(words) and pattern[0] in ("*", words[0]) and _match(pattern[1:], words[1:])


def fault_of_shape(kind: str, name: str, shape: dict[str, Any]) -> str:
    """Return what is wrong with an exchange or queue of this shape, "" if nothing is."""
    advice = f"delete it when it is empty, and declare it durable ({REMEDY})"
    if shape.get("durable") == "false":
        return f"{kind} {name!r} is not durable, and a restart of the broker would lose it: {advice}"
    if shape.get("auto_delete") == "true":
        return f"{kind} {name!r} deletes itself when it is unused: {advice}"
    if shape.get("internal") == "true":
        return f"exchange {name!r} is internal, and takes no messages from clients: {advice}"
    if "x-queue-type" in shape:
        return f"queue {name!r} is no quorum queue, and may lose what it confirmed: {advice}"
    return ""


def fault_of_queue(queue: str, exchanges: Sequence[str], found: dict[str, Any], bindings: Iterable[Binding]) -> str:
    """Return what is wrong with a required queue, its policies or its bindings, "" if nothing is.

    `found` is the queue as the management interface returns it.
    """
    if exchanges and not {binding.source for binding in bindings} & set(exchanges):
        return (
            f"queue {queue!r} is bound to none of {', '.join(exchanges)}: "
            f"bind it ({REMEDY}), or required messages come back"
        )
    fault = fault_of_limits(queue, found)
    return fault.text if fault else ""


async def _exists(connection: aiormq.Connection, kind: str, name: str) -> bool:
    try:
        await _declare(connection, kind, name, passive=True)
    except aiormq.exceptions.ChannelNotFoundEntity:
        return False
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise TopologyWrong(f"{kind} {name!r}: {error}: grant this user access to it") from error
    return True


async def shape_of(connection: aiormq.Connection, kind: str, name: str) -> dict[str, Any]:
    """Return where an exchange or queue differs from a durable one (a queue: a durable quorum queue).

    The keys are the names of AMQP's arguments, the values those that the broker reports; empty if nothing differs.
    """
    shape: dict[str, Any] = {}
    options: dict[str, Any] = {"durable": True}
    arguments: dict[str, Any] = {}
    if kind == "queue":
        arguments = {"x-queue-type": "quorum", NEVER: "nowhere"}
    else:
        options["exchange_type"] = "topic"
    for _ in range(MAX_ARGUMENTS):
        try:
            await _declare(connection, kind, name, **options, arguments=arguments)
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            differs = _DIFFERS.search(str(error))
            if differs is None or differs["name"] in shape:
                return shape
            shape[differs["name"]] = differs["value"]
            if differs["value"] is None:  # the queue has no such argument: a classic queue has no "x-queue-type"
                return shape
            match differs["name"]:
                case "type":
                    options["exchange_type"] = differs["value"]
                case "durable" | "auto_delete" | "internal" | "x-queue-type" | "x-queue-leader-locator":
                    return shape
                case argument:
                    is_number = (differs["type"] or "") not in ("longstr", "")
                    arguments[argument] = int(differs["value"]) if is_number else differs["value"]
        except (aiormq.exceptions.ChannelAccessRefused, ValueError):
            return shape  # no right to declare, or a value that cannot be encoded: return what is known
        else:
            break
    return shape


async def _declare(connection: aiormq.Connection, kind: str, name: str, **options: Any) -> None:
    if connection.is_closed:
        raise BrokerLost("the connection is gone")
    with translated(
        aiormq.exceptions.ChannelNotFoundEntity,
        aiormq.exceptions.ChannelAccessRefused,
        aiormq.exceptions.ChannelPreconditionFailed,
    ):
        channel = await connection.channel(publisher_confirms=False, timeout=RPC_SECONDS)
        try:
            if kind == "exchange":
                await channel.exchange_declare(name, timeout=RPC_SECONDS, **options)
            else:
                await channel.queue_declare(name, timeout=RPC_SECONDS, **options)
        finally:
            if not channel.is_closed:
                await channel.close()
