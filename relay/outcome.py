"""What became of the messages of one claim, until it is written down."""

from collections.abc import Mapping
from typing import assert_never

import msgspec

from relay.message import Message, Route
from relay.replies import Classified, Rejected, RouteFailure, Sent, Unrouted
from relay.waves import Waves


class Outcome(msgspec.Struct):
    """Each message is in one place at most; one that is in none stays as it is."""

    sent: list[Message] = msgspec.field(default_factory=list)
    unrouted: list[Message] = msgspec.field(default_factory=list)
    park: dict[str, list[Message]] = msgspec.field(default_factory=dict)  # by reason
    block: dict[str, str] = msgspec.field(default_factory=dict)  # key: reason

    def take(self, message: Message, classified: Classified, waves: Waves) -> None:
        """Note what became of one message of a wave, and let its key go on or stop."""
        match classified:
            case Sent():
                waves.passed(message)
                self.sent.append(message)
            case Unrouted():
                waves.passed(message)
                self.unrouted.append(message)
            case RouteFailure(reason):
                self._park(reason, waves.stopped(message))
            case Rejected(reason):
                self._park(reason, waves.stopped(message))
                self.block[message.key] = reason
            case _ as never:
                assert_never(never)

    def withdraw(self, unproven: Mapping[Route, str]) -> None:
        """Take back the required messages that went to these routes: they were confirmed, but not by their queue.

        They wait, each for its route's reason, and with them all that went behind them, also what no queue has to get:
        once they go again, it comes after them again. What was refused behind one of them is not blocked yet: the key
        has to go on by itself up to there.
        """
        heads: dict[str, Message] = {}
        for message in self.sent:
            if message.required and message.route in unproven:
                heads.setdefault(message.key, message)

        def is_doubtful(message: Message) -> bool:
            head = heads.get(message.key)
            return head is not None and head.id <= message.id

        for message in filter(is_doubtful, (*self.sent, *self.unrouted)):
            self._park(unproven[heads[message.key].route], [message])
        self.sent = [message for message in self.sent if not is_doubtful(message)]
        self.unrouted = [message for message in self.unrouted if not is_doubtful(message)]
        for key in heads:
            self.block.pop(key, None)

    def _park(self, reason: str, messages: list[Message]) -> None:
        fresh = [message for message in messages if not message.parked]
        if fresh:
            self.park.setdefault(reason, []).extend(fresh)
