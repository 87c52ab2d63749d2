"""The relay's decisions in a world of a few rows: table, broker and clock in memory, and somebody else's schedule.

What PostgreSQL and RabbitMQ do is written down here, as plainly as it can be said; whatever is decided is decided by
the relay's own functions. Each move below is one step of one process, and whoever calls them chooses what comes when.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from relay.mark import LowWaterMark
from relay.message import Answer, Message, Reply, Route
from relay.outcome import Outcome
from relay.replies import Classified, RouteFailure, classify
from relay.route_health import RouteHealth
from relay.waves import Waves, sort_out

Mood = Literal["confirm", "nack", "return", "refuse", "silence", "given up"]
Sorting = Callable[[list[Message], Callable[[Route], bool], int], tuple[list[Message], list[Message]]]

ANSWERS = {
    "confirm": Answer.CONFIRMED,
    "nack": Answer.NACKED,
    "return": Answer.RETURNED,
    "refuse": Answer.CLOSED_ALONE,
    "silence": Answer.UNANSWERED,
}
ROUNDS_TO_SETTLE = 60


class Broken(AssertionError):
    """A promise is broken."""


class Decisions(msgspec.Struct, frozen=True):
    """What the relay decides with."""

    waves: type[Waves] = Waves
    sort_out: Sorting = sort_out
    classify: Callable[[Message, Reply], Classified] = classify
    mark: type[LowWaterMark] = LowWaterMark
    outcome: type[Outcome] = Outcome


class Row(msgspec.Struct):
    """A row of the outbox."""

    id: int
    key: str
    routing_key: str
    required: bool
    state: str = "open"  # open -> pending | rolled back; pending -> parked | sent | unrouted; parked -> sent | unrouted


class Claim(msgspec.Struct):
    """What a relay has in hand."""

    park: list[Message]
    waves: Waves
    outcome: Outcome
    wave: list[Message] = []
    going: list[Message] = []
    replies: dict[int, Reply | None] = {}
    closed: dict[Route, str] = {}


class Relay:
    """A relay's memory."""

    def __init__(self, world: "World", name: str) -> None:
        self.name = name
        self.world = world
        self.health = RouteHealth(2.0)
        self.socket: list[Message] = []
        self.connect()

    def connect(self) -> None:
        """Begin with a new session, from the saved mark."""
        self.stands = True  # whether its session does
        self.claim: Claim | None = None
        self.mark = self.world.decide.mark(self.world.saved_mark)
        self.read: int | None = None
        self.observed = False
        self.world.late += self.socket  # may come out of the old connection yet
        self.socket = []


class World:
    """The table, the broker and the clock."""

    def __init__(self, decide: Decisions) -> None:
        self.decide = decide
        self.now = 1000.0
        self.rows: dict[int, Row] = {}
        self.last_value = 0
        self.open: dict[str, list[int]] = {}  # by key: the rows of its open transaction
        self.blocked: dict[str, int] = {}  # by key: the row that was refused
        self.saved_mark = 0
        self.shards: dict[str, str] = {}  # by key: the relay that holds its shard's lock
        self.arrived: list[int] = []  # rows whose message is stored, or found no queue and need not
        self.refused: set[int] = set()  # rows that the broker refused for what they are
        self.late: list[Message] = []
        self.relays = {name: Relay(self, name) for name in ("one", "two")}

    # Writers

    def draw(self, key: str, routing_key: str, required: bool) -> None:
        """Insert a row; a transaction of the key that is open goes on."""
        self.last_value += 1
        self.rows[self.last_value] = Row(self.last_value, key, routing_key, required)
        self.open.setdefault(key, []).append(self.last_value)

    def end(self, key: str, state: str) -> None:
        """Commit or roll back the key's transaction."""
        for row_id in self.open.pop(key):
            self.rows[row_id].state = state

    # The broker

    def answer(self, relay: Relay, mood: Mood) -> None:
        """Take the first message out of the relay's socket, and do with it as one likes."""
        message = relay.socket.pop(0)
        if mood in {"silence", "given up"}:
            self.late.append(message)
        if mood == "refuse":
            self.refused.add(message.id)
        if mood == "confirm" or (mood == "return" and not message.required):
            self._store(message)
        if relay.claim is not None and relay.stands:
            # A channel was closed under it, and there was no time to find out by whom: no answer at all.
            relay.claim.replies[message.id] = None if mood == "given up" else Reply(ANSWERS[mood], mood)

    def come_late(self, at: int) -> None:
        """A message comes out of a connection that was given up."""
        message = self.late.pop(at)
        if message.id not in self.refused:
            self._store(message)

    def _store(self, message: Message) -> None:
        if message.id in self.arrived:
            return
        for row in self.rows.values():
            # An open row of the key is a later one: its writer has waited for the one before.
            if row.key == message.key and row.id < message.id and row.state not in {"rolled back", "open"}:
                self._promise(row.id in self.arrived, f"row {message.id} has overtaken row {row.id} of its key")
        self.arrived.append(message.id)

    # A relay, step by step, as in forward.py

    def go_on(
        self, relay: Relay, keys: Iterable[str], most: int, *, out_of_time: bool, unproven: str | None = None
    ) -> None:
        """Do the relay's next step, if there is one: claim, or sort out what was answered, or record.

        `unproven` is a routing key whose required queue was not seen to be there for the confirms.
        """
        claim = relay.claim
        if claim is None:
            if relay.stands:
                self._claim(relay, keys, most)
            else:
                relay.connect()
        elif len(claim.replies) == len(claim.going):
            self._sort_out_answers(relay, claim)
            if out_of_time or not self._publish(relay, claim):
                self._withdraw(relay, claim, unproven)
                self._record(relay, claim)

    def _claim(self, relay: Relay, keys: Iterable[str], most: int) -> None:
        held = {key for key in keys if key not in self.shards}
        waiting = {row.key for row in self.rows.values() if row.state == "parked"}
        heads: dict[Route, list[str]] = {}
        for row in self.rows.values():
            if row.state == "parked" and row.key not in self.blocked and row.key in held:
                keys_of_route = heads.setdefault(Route("orders", row.routing_key), [])
                if not any(row.key in others for others in heads.values()):
                    keys_of_route.append(row.key)
        allowed = relay.health.allowance([route for route, found in heads.items() if found], self.now, most)
        due = {key for route, many in allowed.items() for key in heads[route][:many]}
        parked = [row for row in self.rows.values() if row.state == "parked" and row.key in due][:most]
        fresh = [
            row for row in self.rows.values() if row.state == "pending" and row.key in held and row.id > relay.mark.mark
        ][: max(0, most - len(parked))]
        messages = [self._message(row, waiting) for row in (*parked, *fresh)]
        if not messages:
            return
        publish, park = self.decide.sort_out(messages, relay.health.is_open, max(1, most // 2))
        claim = Claim(park, self.decide.waves(publish), self.decide.outcome())
        self.shards |= dict.fromkeys(held, relay.name)
        relay.claim = claim
        if not self._publish(relay, claim):
            self._record(relay, claim)

    def _message(self, row: Row, waiting: set[str]) -> Message:
        return Message(
            id=row.id, event_id=f"event-{row.id}", key=row.key, exchange="orders", routing_key=row.routing_key,
            required=row.required, content_type="", headers="{}", body=b"", created=self.now,
            parked=row.state == "parked", key_waits=row.state == "pending" and row.key in waiting,
        )  # fmt: skip

    def _publish(self, relay: Relay, claim: Claim) -> bool:
        """Write the next wave to the socket; False if there is none."""
        claim.wave = claim.waves.next()
        claim.going = [message for message in claim.wave if message.route not in claim.closed]
        claim.replies = {}
        relay.socket += claim.going
        return bool(claim.wave)

    def _sort_out_answers(self, relay: Relay, claim: Claim) -> None:
        for message in claim.wave:
            if message in claim.going:
                reply = claim.replies[message.id]
            else:
                reply = Reply(Answer.WITHHELD, claim.closed[message.route])
            if reply is None:
                claim.waves.put_off(message)
                continue
            classified = self.decide.classify(message, reply)
            stopped = claim.outcome.take(message, classified)
            if stopped is None:
                claim.waves.passed(message)
            else:
                claim.outcome.wait(claim.waves.stopped(message), stopped)
            if isinstance(classified, RouteFailure) and message.route not in claim.closed:
                claim.closed[message.route] = reply.reason
                relay.health.failed(message.route, self.now, reply.reason)
        for route in {message.route for message in claim.going} - claim.closed.keys():
            relay.health.passed(route)
        claim.wave, claim.going, claim.replies = [], [], {}

    def _withdraw(self, relay: Relay, claim: Claim, unproven: str | None) -> None:
        routes = {message.route for message in claim.outcome.sent if message.required}
        reasons = {route: "unproven" for route in routes if route.routing_key == unproven}
        claim.outcome.withdraw(reasons)
        for route, reason in reasons.items():
            relay.health.failed(route, self.now, reason)

    def fail_elsewhere(self, relay: Relay, routing_key: str) -> None:
        """Another claimer of the same relay, with which it shares the health of the routes, sees a route fail."""
        relay.health.failed(Route("orders", routing_key), self.now, "failed elsewhere")

    def _record(self, relay: Relay, claim: Claim) -> None:
        if not relay.stands:
            relay.connect()  # the statement fails, and all is as it was
            return
        claim.outcome.wait_behind(claim.park, claim.waves.left())
        for messages in claim.outcome.park.values():
            for message in messages:
                self.rows[message.id].state = "parked"
        for state, messages in (("sent", claim.outcome.sent), ("unrouted", claim.outcome.unrouted)):
            for message in messages:
                self._promise(message.id in self.arrived, f"row {message.id} is called {state}, and has not arrived")
                self._promise(state == "sent" or not message.required, f"row {message.id} is required, and {state}")
                self.rows[message.id].state = state
        for key in claim.outcome.block:
            head = min(row.id for row in self.rows.values() if row.key == key and row.state == "parked")
            self._promise(head in self.refused, f"key {key!r} is blocked by row {head}, which nobody has refused")
            self.blocked[key] = head
        self._let_go(relay)
        relay.claim = None

    def _let_go(self, relay: Relay) -> None:
        self.shards = {key: name for key, name in self.shards.items() if name != relay.name}

    def end_session(self, relay: Relay) -> None:
        """The server ends the relay's session, as when it is killed or stopped; it may not notice for a while."""
        self._let_go(relay)
        relay.stands = False

    def begin_again(self, relay: Relay) -> None:
        """The relay was killed, or has noticed."""
        self._let_go(relay)
        relay.connect()

    def move_mark(self, relay: Relay) -> None:
        """One statement of the three that move a mark."""
        if not relay.stands:
            return
        if relay.read is None and not relay.observed:
            relay.read = self.last_value
        elif relay.read is not None:
            relay.mark.observe(relay.read, [f"3/{ids[0]}" for ids in self.open.values()])
            relay.read, relay.observed = None, True
        else:
            mark = relay.mark
            pending = [row.id for row in self.rows.values() if row.state == "pending"]
            mark.advance(min((row_id for row_id in pending if mark.mark < row_id <= mark.settled), default=None))
            relay.observed = False
            for row in self.rows.values():
                is_safe = row.id > mark.mark or row.state not in {"open", "pending"}
                self._promise(is_safe, f"row {row.id} is {row.state}, and below the mark")
            self.saved_mark = max(self.saved_mark, mark.mark)

    # What has to hold in the end

    def settle(self) -> None:
        """Heal everything, and let all work: what is committed arrives, but for what stands behind a refusal."""
        for key in list(self.open):
            self.end(key, "pending")
        for relay in self.relays.values():
            self.begin_again(relay)
        for _ in range(ROUNDS_TO_SETTLE):
            self.now += 10
            for relay in self.relays.values():
                self.go_on(relay, sorted({row.key for row in self.rows.values()}), 100, out_of_time=False)
                while relay.socket:
                    refuses = relay.socket[0].id in self.refused
                    self.answer(relay, "refuse" if refuses else "confirm")
                self.go_on(relay, (), 0, out_of_time=True)
                for _ in range(3):
                    self.move_mark(relay)
        for row in self.rows.values():
            waits = row.key in self.blocked and row.id >= self.blocked[row.key]
            done = row.state in {"sent", "unrouted", "rolled back"} or waits
            self._promise(done, f"row {row.id} is {row.state} for good")

    def _promise(self, holds: bool, breach: str) -> None:
        if not holds:
            raise Broken(breach)
