"""A message on its way from an outbox row to an exchange, and the broker's answer to it."""

import enum

import msgspec


class Message(msgspec.Struct, frozen=True, gc=False):
    """A claimed outbox row: the relay reads its address, and never its body."""

    id: int  # of the outbox row
    event_id: str  # a UUID; AMQP's message id
    key: str  # messages of one key keep their order
    exchange: str
    routing_key: str
    required: bool  # it has to reach a queue
    content_type: str
    headers: str  # a JSON object
    body: bytes
    created: float  # seconds since the epoch, by the database's clock
    parked: bool  # the row is parked already
    key_waits: bool  # an earlier row of this key is parked

    @property
    def route(self) -> "Route":
        """Where the message goes."""
        return Route(self.exchange, self.routing_key)


class Route(msgspec.Struct, frozen=True, gc=False, order=True):
    """Where a message goes; a temporary failure concerns a whole route."""

    exchange: str
    routing_key: str

    def __str__(self) -> str:
        return f"{self.exchange or '(default)'}/{self.routing_key}"


class Answer(enum.Enum):
    """The kinds of the broker's replies to one message."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"  # no queue took it; the confirm came after the return
    NACKED = "nacked"  # the broker would not take it
    CLOSED_ROUTE = "closed route"  # 403 or 404: of the exchange, not of the message
    CLOSED_ALONE = "closed alone"  # sent alone, it made the broker close the channel or the connection
    UNENCODABLE = "unencodable"  # AMQP has no form for it; it was not published
    UNANSWERED = "unanswered"  # no confirm in time
    WITHHELD = "withheld"  # not published: its queue does not exist, or cannot be seen


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer with its reason: the broker's own text where it gave any."""

    answer: Answer
    reason: str = ""


CONFIRMED = Reply(Answer.CONFIRMED)
