"""The part of an api's room that one client may take, so that nobody has to wait for a neighbour's requests."""

from collections import Counter

from orders.model.errors import TooManyRequests


class Shares:
    """Counts what each client has in hand of one kind: placements, lists, or streams and waits.

    `room` is how many of the kind the process takes at all, `share` the part of it for one client. The anonymous
    client is many people; nginx bounds each of their addresses.
    """

    def __init__(self, room: int, share: float) -> None:
        self.most = max(1, int(room * share))
        self._in_hand: Counter[str] = Counter()

    def require_room(self, client: str) -> None:
        """Raise TooManyRequests if the client has its share in hand."""
        if client and self._in_hand[client] >= self.most:
            raise TooManyRequests

    def take(self, client: str, count: int = 1) -> None:
        """Count so many more of the client's until `give_back`; raise TooManyRequests if it has its share in hand."""
        self.require_room(client)
        self._in_hand[client] += count

    def give_back(self, client: str, count: int = 1) -> None:
        """Count so many less."""
        self._in_hand[client] -= count
        if not self._in_hand[client]:
            del self._in_hand[client]
