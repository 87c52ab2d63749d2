"""The outcome of one claim: what becomes of each of its messages, until it is recorded."""

from collections.abc import Iterable, Mapping
from typing import assert_never

import msgspec

from relay.message import Message, Route
from relay.replies import Classified, Rejected, RouteFailure, Sent, Unrouted


class Outcome(msgspec.Struct):
    """Each message is in one of these at most; a message that is in none stays as it is."""

    sent: list[Message] = msgspec.field(default_factory=list)
    unrouted: list[Message] = msgspec.field(default_factory=list)
    park: dict[str, list[Message]] = msgspec.field(default_factory=dict)  # by reason
    block: dict[str, str] = msgspec.field(default_factory=dict)  # key: reason

    @property
    def parked_rows(self) -> int:
        """How many rows to park."""
        return sum(map(len, self.park.values()))

    @property
    def changed_rows(self) -> int:
        """How many rows to settle or to park."""
        return len(self.sent) + len(self.unrouted) + self.parked_rows

    def latencies(self, now: float) -> list[float]:
        """Return for each sent message the seconds from its row's time to `now`, both by the database's clock."""
        return [now - message.created for message in self.sent]

    def take(self, message: Message, classified: Classified) -> str | None:
        """Take a published message in; return why its key has to stop, None if the key may go on.

        If the key has to stop, the caller passes the message and those behind it to `wait`.
        """
        match classified:
            case Sent():
                self.sent.append(message)
                return None
            case Unrouted():
                self.unrouted.append(message)
                return None
            case RouteFailure(reason):
                return reason
            case Rejected(reason):
                self.block[message.key] = reason
                return reason
            case _ as never:
                assert_never(never)

    def wait(self, messages: Iterable[Message], reason: str) -> None:
        """Park those of these messages that are not parked yet."""
        fresh = [message for message in messages if not message.parked]
        if fresh:
            self.park.setdefault(reason, []).extend(fresh)

    def wait_behind(self, messages: list[Message], left: Mapping[str, list[Message]]) -> None:
        """Park messages that were claimed to be parked, and before them what is `left` of their keys.

        `left`: by key the messages that were not published in time. Those of other keys stay pending.
        """
        before = [message for key in {message.key for message in messages} for message in left.get(key, ())]
        if messages:
            self.park["its key or its route waits"] = before + messages

    def withdraw(self, unproven: Mapping[Route, str]) -> None:
        """Withdraw the required messages that went to these routes: another queue than theirs confirmed them.

        They wait, each for its route's reason, and with them every message of their keys that went after them, also one
        that is not required: published again, it has to follow them again. A message that was rejected after a
        withdrawn one does not block its key yet, since the key has to go on by itself up to that message.
        """
        heads: dict[str, Message] = {}
        for message in self.sent:
            if message.required and message.route in unproven:
                heads.setdefault(message.key, message)

        def is_doubtful(message: Message) -> bool:
            head = heads.get(message.key)
            return head is not None and head.id <= message.id

        for message in filter(is_doubtful, (*self.sent, *self.unrouted)):
            self.wait([message], unproven[heads[message.key].route])
        self.sent = [message for message in self.sent if not is_doubtful(message)]
        self.unrouted = [message for message in self.unrouted if not is_doubtful(message)]
        for key in heads:
            self.block.pop(key, None)
