"""What a reply of the broker means for its message: sent, unrouted, a failure of its route, or rejected.

A route failure costs the message nothing: its key waits, and the relay tries again. A rejected message blocks its key
until an operator decides.
"""

import enum
from typing import NamedTuple, assert_never

import msgspec

from relay.message import Answer, Message, Reply


class Sent(msgspec.Struct, frozen=True, gc=False):
    """The broker confirmed the message, and at least one queue has it."""


class Unrouted(msgspec.Struct, frozen=True, gc=False):
    """No queue took the message, and it is not required to reach one."""


class RouteFailure(msgspec.Struct, frozen=True, gc=False):
    """The message's route does not take messages at present."""

    reason: str


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """The broker will never take this message as it is."""

    reason: str


Classified = Sent | Unrouted | RouteFailure | Rejected


def classify(message: Message, reply: Reply) -> Classified:
    """Return what this reply to this message means."""
    match reply.answer:
        case Answer.CONFIRMED:
            return Sent()
        case Answer.RETURNED if not message.required:
            return Unrouted()
        case Answer.RETURNED | Answer.NACKED | Answer.CLOSED_ROUTE | Answer.UNANSWERED | Answer.WITHHELD:
            return RouteFailure(f"{reply.answer.value}: {reply.reason}" if reply.reason else reply.answer.value)
        case Answer.CLOSED_ALONE | Answer.UNENCODABLE:
            return Rejected(f"{reply.answer.value}: {reply.reason}")
        case _ as never:
            assert_never(never)


class Closure(enum.Enum):
    """What the broker closed a channel or a connection for."""

    ROUTE = "route"
    MESSAGE = "message"
    OUTAGE = "outage"


def whose_channel_closure(code: int | None) -> Closure:
    """Return what the broker closed the channel for; `code` is its AMQP reply code, None if it gave none."""
    match code:
        case 403 | 404:
            return Closure.ROUTE
        case None | 541:
            return Closure.OUTAGE
        case _:
            return Closure.MESSAGE


def whose_connection_closure(code: int | None) -> Closure:
    """Return what the broker closed the connection for: a 50x answers what was sent last. None is no code."""
    if code is not None and 501 <= code <= 506:
        return Closure.MESSAGE
    return Closure.OUTAGE


class Suspects(NamedTuple):
    """A wave that the broker closed a channel or connection for, divided."""

    causes: list[Message]  # the close was for these
    groups: list[list[Message]]  # publish each of these groups again


def split_suspects(closure: Closure, text: str, wave: list[Message]) -> Suspects:
    """After a close with `wave` unanswered, return the messages that caused it and the groups to publish again.

    `text` is the broker's reply text. A close fails every outstanding message, so the wave is bisected, except for
    messages that `text` names, until the message that fails is alone.
    """
    if closure is Closure.ROUTE:
        named = [message for message in wave if _is_named(message, text)]
        if named:
            others = [message for message in wave if not _is_named(message, text)]
            return Suspects(named, [others] if others else [])
    if len(wave) == 1:
        return Suspects(wave, [])
    half = len(wave) // 2
    return Suspects([], [wave[:half], wave[half:]])


def _is_named(message: Message, text: str) -> bool:
    """RabbitMQ says "no exchange 'x'", "access to exchange 'x'" or "access to topic 'r' in exchange 'x'"."""
    if f"exchange '{message.exchange}'" not in text:
        return False
    return "topic '" not in text or f"topic '{message.routing_key}'" in text
