"""Which messages of a claim may be published now.

At most one unconfirmed message of a key, since the broker may nack or return the first of two and take the second.
At most one unconfirmed message with an event id, since a return names its message by nothing else.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from relay.message import Message, Route


class Waves:
    """The messages of one claim, as waves in which no key and no event id appears twice.

    After a wave, each of its messages is passed to exactly one of `passed`, `stopped` and `put_off`.
    """

    def __init__(self, messages: Iterable[Message]) -> None:
        self._queues: dict[str, list[Message]] = {}
        for message in sorted(messages, key=lambda message: message.id, reverse=True):
            self._queues.setdefault(message.key, []).append(message)
        self._put_off: list[list[Message]] = []

    def next(self) -> list[Message]:
        """Return the next wave: the first message of each key that is left. It is empty when all are through."""
        wave: list[Message] = []
        event_ids: set[str] = set()
        for queue in self._queues.values():
            head = queue[-1]
            if head.event_id not in event_ids:
                event_ids.add(head.event_id)
                wave.append(head)
        return wave

    def passed(self, message: Message) -> None:
        """Let the next message of its key go: this one is settled."""
        queue = self._queues[message.key]
        queue.pop()
        if not queue:
            del self._queues[message.key]

    def stopped(self, message: Message) -> list[Message]:
        """Take out its key: the message has to wait. Return it and those behind it, which wait too, in order of ids."""
        return self._queues.pop(message.key)[::-1]

    def put_off(self, message: Message) -> None:
        """Take out its key: the message has no reply. It stays as it is, and so do those behind it."""
        self._put_off.append(self._queues.pop(message.key))

    def left(self) -> dict[str, list[Message]]:
        """Return by key the messages that stay pending, in order of ids: a parked row behind them would overtake them.

        A key whose messages are parked already is left out.
        """
        queues = [*self._put_off, *self._queues.values()]
        return {queue[-1].key: queue[::-1] for queue in queues if not queue[-1].parked}


class SortedClaim(NamedTuple):
    """A claim divided into two lists, both in order of ids."""

    publish: list[Message]
    park: list[Message]


def most_of_key(max_rows: int) -> int:
    """Return how many rows of one key a claim of up to `max_rows` publishes while others may wait behind it.

    A key's rows go one after the other, so the rows of one key take as many confirms.
    """
    return min(100, max(10, max_rows // 10))


def sort_out(messages: list[Message], is_open: Callable[[Route], bool], of_key: int) -> SortedClaim:
    """Divide a claim, in order of ids, into messages to publish and messages to park.

    A message that is not parked has to be if its key waits, its route is not open, or `of_key` messages of its key go
    out already; then its key waits, and every later message of it is parked as well.
    """
    publish: list[Message] = []
    park: list[Message] = []
    waiting: set[str] = set()
    of_keys: Counter[str] = Counter()
    for message in messages:
        of_keys[message.key] += 1
        if message.parked:
            publish.append(message)
        elif message.key_waits or message.key in waiting or of_keys[message.key] > of_key or not is_open(message.route):
            waiting.add(message.key)
            park.append(message)
        else:
            publish.append(message)
    return SortedClaim(publish, park)
