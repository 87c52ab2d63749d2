"""Which messages of a claim may be published now.

At most one unconfirmed message of a key: the broker may nack or return the first of two and take the second.
At most one unconfirmed message with an event id: a return is told apart by nothing else.
"""

from collections.abc import Callable, Iterable

from relay.message import Message, Route


class Waves:
    """The messages of one claim, as waves in which no key and no event id appears twice."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._queues: dict[str, list[Message]] = {}
        for message in sorted(messages, key=lambda message: message.id, reverse=True):
            self._queues.setdefault(message.key, []).append(message)
        self._put_off: list[Message] = []

    def next(self) -> list[Message]:
        """Return the first message of each key that is left; each is to be answered by `passed` or `stopped`."""
        wave: list[Message] = []
        event_ids: set[str] = set()
        for queue in self._queues.values():
            head = queue[-1]
            if head.event_id not in event_ids:
                event_ids.add(head.event_id)
                wave.append(head)
        return wave

    def passed(self, message: Message) -> None:
        """The message is settled; the next of its key may go."""
        queue = self._queues[message.key]
        queue.pop()
        if not queue:
            del self._queues[message.key]

    def stopped(self, message: Message) -> list[Message]:
        """The message has to wait; return it and those behind it, in order, which wait with it."""
        return self._queues.pop(message.key)[::-1]

    def put_off(self, message: Message) -> None:
        """The message was not tried to the end; it stays as it is, and those behind it."""
        self._put_off.append(message)
        del self._queues[message.key]

    def left(self) -> set[str]:
        """Return the keys of which a row stays pending: nothing behind it may be parked, or it would go first."""
        heads = [*self._put_off, *(queue[-1] for queue in self._queues.values())]
        return {message.key for message in heads if not message.parked}


def sort_out(messages: list[Message], is_open: Callable[[Route], bool]) -> tuple[list[Message], list[Message]]:
    """Divide a claim, in order of ids, into what may be published and what has to be parked first.

    A row that is not parked yet has to be if its key waits, or if its route does not take messages now; then its
    key waits as well, with all that follows.
    """
    publish: list[Message] = []
    park: list[Message] = []
    waiting: set[str] = set()
    for message in messages:
        if message.parked:
            publish.append(message)
        elif message.key_waits or message.key in waiting or not is_open(message.route):
            waiting.add(message.key)
            park.append(message)
        else:
            publish.append(message)
    return publish, park
