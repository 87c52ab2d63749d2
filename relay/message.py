"""What travels from an outbox row to an exchange, and what became of it."""

import enum

import msgspec


class Message(msgspec.Struct, frozen=True, gc=False):
    """A letter: the address is ours to read, the body is not."""

    id: int
    event_id: str
    key: str
    exchange: str
    routing_key: str
    required: bool
    content_type: str
    headers: str  # a JSON object, encoded for AMQP on the way
    body: bytes
    created: float  # seconds since the epoch, on the database's clock
    parked: bool
    key_waits: bool  # an earlier row of this key is parked

    @property
    def route(self) -> "Route":
        return Route(self.exchange, self.routing_key)


class Route(msgspec.Struct, frozen=True, gc=False, order=True):
    """Where a message goes. Whether it gets there may fail for a route as a whole: see `route_health`."""

    exchange: str
    routing_key: str

    def __str__(self) -> str:
        return f"{self.exchange or '(default)'}/{self.routing_key}"


class Answer(enum.Enum):
    """What the broker said to one message."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"  # no queue took it; the confirm came after the return
    NACKED = "nacked"
    CLOSED_ROUTE = "closed route"  # 403 or 404: of the exchange, not of the message
    CLOSED_ALONE = "closed alone"  # sent alone, it made the broker close the channel or the connection
    UNENCODABLE = "unencodable"
    UNANSWERED = "unanswered"
    WITHHELD = "withheld"  # not published: its queue is not there, or cannot be seen


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer, in the broker's own words where it gave any."""

    answer: Answer
    reason: str = ""


CONFIRMED = Reply(Answer.CONFIRMED)
