"""Publishes the messages of one claim wave by wave, and sorts the broker's replies into its outcome."""

import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from relay.claim_session import PROOF_SECONDS, ClaimSession
from relay.guard import Guard
from relay.message import Answer, Message, Reply, Route
from relay.outcome import Outcome
from relay.publisher import Publisher
from relay.replies import Rejected, RouteFailure, classify
from relay.routes import Routes
from relay.state import RelayState
from relay.waves import Waves

log = logging.getLogger("relay")

# Looks whether routes led to their queues; returns those that did not, and why.
Look = Callable[[set[Route]], Coroutine[Any, Any, dict[Route, str]]]


class Published(NamedTuple):
    """The result of publishing the messages of one claim."""

    outcome: Outcome
    left: dict[str, list[Message]]  # by key the messages that stay pending: no row behind them may be parked alone
    answered_at: float  # when the last wave was answered, in monotonic seconds


class WavePublisher:
    """One claimer's way from messages to an outcome."""

    def __init__(
        self,
        publisher: Publisher,
        guard: Guard,
        routes: Routes,
        session: ClaimSession,
        state: RelayState,
        hold_seconds: float,
    ) -> None:
        """No wave starts later than `hold_seconds` after the first one."""
        self._publisher = publisher
        self._guard = guard
        self._routes = routes
        self._session = session
        self._state = state
        self._hold_seconds = hold_seconds

    async def publish(self, messages: list[Message]) -> Published:
        """Publish claimed messages, and prove that the required ones reached their queues.

        Raises BrokerLost, and DatabaseLost if the claiming transaction does not stand any more.
        """
        outcome, left = await self._publish_waves(messages)
        answered_at = time.monotonic()
        required = {message.route for message in outcome.sent if message.required}
        await self._withdraw_unproven(outcome, required, self._guard.after)
        return Published(outcome, left, answered_at)

    async def _publish_waves(self, messages: list[Message]) -> tuple[Outcome, dict[str, list[Message]]]:
        """Publish waves until all messages are through, or the claim has been held long enough."""
        outcome = Outcome()
        waves = Waves(messages)
        until = time.monotonic() + self._hold_seconds
        required = {message.route for message in messages if message.required}
        closed: dict[Route, str] = {}
        if required:
            closed = await self._session.while_proving(self._guard.before(required), "relay-guard")
            self._routes.fail(closed)
        doubtful: set[Route] = set()
        while wave := waves.next():
            if await self._withdraw_unproven(outcome, doubtful, self._guard.between):
                break  # the messages that are left would overtake those that were withdrawn
            await self._session.prove(PROOF_SECONDS)
            going = [message for message in wave if message.route not in closed]
            went = {message.route for message in going}
            doubtful = went & required
            replies = await self._publish_wave(going, doubtful, until) if going else {}
            for message in wave:
                if message.route in closed and message.id not in replies:
                    reply: Reply | None = Reply(Answer.WITHHELD, closed[message.route])
                else:
                    reply = replies.get(message.id)
                self._sort_in(message, reply, waves, outcome, closed)
            self._routes.passed(went - closed.keys())
            self._routes.show()
            if time.monotonic() >= until:
                break
        return outcome, waves.left()

    async def _publish_wave(self, wave: list[Message], required: set[Route], until: float) -> dict[int, Reply]:
        """Publish one wave, and record how long the broker took to answer it."""
        began = time.monotonic()
        async with self._guard.watching(required):
            replies = await self._session.while_proving(self._publisher.publish(wave, until), "relay-publish")
        self._state.answered(time.monotonic() - began)
        return replies

    def _sort_in(
        self, message: Message, reply: Reply | None, waves: Waves, outcome: Outcome, closed: dict[Route, str]
    ) -> None:
        """Sort one message into the outcome; without a reply it stays as it is, with those behind it."""
        if reply is None:
            waves.put_off(message)
            return
        classified = classify(message, reply)
        stopped = outcome.take(message, classified)
        if stopped is None:
            waves.passed(message)
        else:
            outcome.wait(waves.stopped(message), stopped)
        match classified:
            case RouteFailure(reason):
                self._state.count_failure(reply.answer)
                if message.route not in closed:
                    closed[message.route] = reason
                    self._routes.fail({message.route: reason})
            case Rejected(reason):
                self._state.refused.inc()
                log.error("row %d of key %r is rejected and blocks its key: %s", message.id, message.key, reason)

    async def _withdraw_unproven(self, outcome: Outcome, routes: set[Route], look: Look) -> bool:
        """Withdraw required messages whose queue is not proven to have been there for the confirms.

        Return whether any were withdrawn.
        """
        if not routes:
            return False
        unproven = await self._session.while_proving(look(routes), "relay-guard")
        if not unproven:
            return False
        outcome.withdraw(unproven)
        self._routes.fail(unproven)
        self._routes.show()
        return True
