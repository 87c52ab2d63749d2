"""What an answer of the broker means: settled, a failure of the route, or a refusal of this very message.

A route failure spends nothing: the key waits and is tried again. A refusal blocks its key until an operator decides.
"""

import enum
from typing import assert_never

import msgspec

from relay.message import Answer, Message, Reply


class Sent(msgspec.Struct, frozen=True, gc=False):
    """The broker confirmed it, and a queue has it."""


class Unrouted(msgspec.Struct, frozen=True, gc=False):
    """It need not reach a queue, and none wanted it."""


class RouteFailure(msgspec.Struct, frozen=True, gc=False):
    """Its route does not take messages now."""

    reason: str


class Refused(msgspec.Struct, frozen=True, gc=False):
    """It will never be taken as it is."""

    reason: str


Verdict = Sent | Unrouted | RouteFailure | Refused


def judge(message: Message, reply: Reply) -> Verdict:
    """Say what this reply to this message means."""
    match reply.answer:
        case Answer.CONFIRMED:
            return Sent()
        case Answer.RETURNED if not message.required:
            return Unrouted()
        case Answer.RETURNED | Answer.NACKED | Answer.CLOSED_ROUTE | Answer.UNANSWERED | Answer.WITHHELD:
            return RouteFailure(f"{reply.answer.value}: {reply.reason}" if reply.reason else reply.answer.value)
        case Answer.CLOSED_ALONE | Answer.UNENCODABLE:
            return Refused(f"{reply.answer.value}: {reply.reason}")
        case _ as never:
            assert_never(never)


class Closure(enum.Enum):
    """Whom a close by the broker is about."""

    ROUTE = "route"
    MESSAGE = "message"
    OUTAGE = "outage"


def whose_channel_closure(code: int | None) -> Closure:
    """Say whom the broker's closing of the channel is about."""
    match code:
        case 403 | 404:
            return Closure.ROUTE
        case None | 541:
            return Closure.OUTAGE
        case _:
            return Closure.MESSAGE


def whose_connection_closure(code: int | None) -> Closure:
    """Say whom the broker's closing of the connection is about: a 50x is an answer to what was sent last."""
    if code is not None and 501 <= code <= 506:
        return Closure.MESSAGE
    return Closure.OUTAGE


def split_suspects(closure: Closure, text: str, wave: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    """After a close with `wave` unanswered, say who is named by it and in which groups the others go again.

    One message fails all that were outstanding with it, so the others are bisected until what fails is alone.
    """
    if closure is Closure.ROUTE:
        named = [message for message in wave if _is_named(message, text)]
        if named:
            others = [message for message in wave if not _is_named(message, text)]
            return named, [others] if others else []
    if len(wave) == 1:
        return wave, []
    half = len(wave) // 2
    return [], [wave[:half], wave[half:]]


def _is_named(message: Message, text: str) -> bool:
    """RabbitMQ says "no exchange 'x'", "access to exchange 'x'" or "access to topic 'r' in exchange 'x'"."""
    if f"exchange '{message.exchange}'" not in text:
        return False
    return "topic '" not in text or f"topic '{message.routing_key}'" in text
