"""What becomes of the messages of a claim, with a broker and a guard that answer as each test wants."""

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, cast

from relay.message import CONFIRMED, Answer, Message, Reply, Route
from relay.route_health import RouteHealth
from relay.routes import Routes
from relay.state import RelayState
from relay.wave_publisher import Published, WavePublisher
from tests.relay.messages import make_message

HERE, THERE = Route("orders", "order.placed"), Route("orders", "other")
UNPROVEN = "queue gone"


class Broker:
    """Publisher, guard and session in one; `answers` has the replies that are no confirms, None for no reply."""

    def __init__(self, answers: dict[int, Reply | None] | None = None) -> None:
        self.answers = answers or {}
        self.closed: dict[Route, str] = {}  # before the claim
        self.unproven: list[dict[Route, str]] = []  # what each look after a wave returns
        self.waves: list[list[int]] = []
        self.looks: list[set[Route]] = []

    async def publish(self, wave: list[Message], _: float) -> dict[int, Reply]:
        self.waves.append([message.id for message in wave])
        replies = {message.id: self.answers.get(message.id, CONFIRMED) for message in wave}
        return {row_id: reply for row_id, reply in replies.items() if reply is not None}

    async def before(self, _: Iterable[Route]) -> dict[Route, str]:
        return self.closed

    async def after(self, routes: set[Route]) -> dict[Route, str]:
        self.looks.append(routes)
        return self.unproven.pop(0) if self.unproven else {}

    between = after

    @contextlib.asynccontextmanager
    async def watching(self, _: Iterable[Route]) -> AsyncIterator[None]:
        yield

    async def prove(self, _: float) -> None:
        pass

    async def while_proving(self, work: Coroutine[Any, Any, Any], _: str) -> Any:
        return await work


async def publish(
    broker: Broker, messages: list[Message], hold_seconds: float = 60.0
) -> tuple[Published, RelayState, Callable[[str], float | None]]:
    state = RelayState()
    anything = cast(Any, broker)
    routes = Routes(RouteHealth(2.0), state)
    publisher = WavePublisher(anything, anything, routes, anything, state, hold_seconds)
    published = await publisher.publish(messages)
    return published, state, lambda name: state.registry.get_sample_value(f"relay_{name}_total")


async def test_messages_of_a_key_go_one_after_the_other() -> None:
    """
    Each wave has one message of a key; all that is confirmed is sent, and nothing is left.
    """
    broker = Broker()

    published, _, _ = await publish(broker, [make_message(1, "a"), make_message(2, "a"), make_message(3, "b")])

    assert sorted(map(sorted, broker.waves)) == [[1, 3], [2]]
    assert sorted(message.id for message in published.outcome.sent) == [1, 2, 3]
    assert published.left == {}


async def test_a_route_that_fails_is_not_tried_again_in_the_claim() -> None:
    """
    A failure closes its route for the rest of the claim: later messages of it are parked and not published.
    """
    broker = Broker({1: Reply(Answer.NACKED, "full")})
    messages = [make_message(1, "a"), make_message(2, "b", routing_key="other"), make_message(3, "b")]

    published, state, count = await publish(broker, messages)

    assert 3 not in [row_id for wave in broker.waves for row_id in wave]
    assert published.outcome.sent == [messages[1]]
    assert published.outcome.park == {"nacked: full": [messages[0]], "withheld: nacked: full": [messages[2]]}
    assert state.closed_routes == {str(HERE): "nacked: full"}
    assert count("nacked") == 1


async def test_a_route_without_its_queue_is_withheld() -> None:
    """
    Messages of a route that the guard has closed are parked without being published, and others go on.
    """
    broker = Broker()
    broker.closed = {HERE: UNPROVEN}
    messages = [make_message(1, "a"), make_message(2, "b", routing_key="other")]

    published, state, _ = await publish(broker, messages)

    assert broker.waves == [[2]]
    assert published.outcome.park == {f"withheld: {UNPROVEN}": [messages[0]]}
    assert state.closed_routes == {str(HERE): UNPROVEN}


async def test_a_rejected_message_blocks_its_key_alone() -> None:
    """
    It is parked with those behind it and counted; the route stays open.
    """
    broker = Broker({1: Reply(Answer.CLOSED_ALONE, "406")})
    messages = [make_message(1, "a"), make_message(2, "a"), make_message(3, "b")]

    published, state, count = await publish(broker, messages)

    assert published.outcome.block == {"a": "closed alone: 406"}
    assert published.outcome.park == {"closed alone: 406": messages[:2]}
    assert published.outcome.sent == [messages[2]]
    assert (state.closed_routes, count("refused")) == ({}, 1)


async def test_a_message_without_a_reply_stays_as_it_is() -> None:
    """
    It is neither sent nor parked, nor is what is behind it, and its key is left.
    """
    published, _, _ = await publish(Broker({1: None}), [make_message(1, "a"), make_message(2, "a")])

    assert published.outcome.changed_rows == 0
    assert published.left.keys() == {"a"}


async def test_what_is_not_proven_is_withdrawn() -> None:
    """
    Before the next wave, and after the last one, the guard is asked about the routes of required messages; if one is
    not proven, no further wave goes out, and its messages are parked.
    """
    broker = Broker()
    broker.unproven = [{HERE: UNPROVEN}]
    messages = [make_message(1, "a"), make_message(2, "a"), make_message(3, "b", routing_key="other", required=False)]

    published, state, _ = await publish(broker, messages)

    assert [1, 2] not in [sorted(wave) for wave in broker.waves]
    assert 2 not in [row_id for wave in broker.waves for row_id in wave]
    assert published.outcome.sent == [messages[2]]
    assert published.outcome.park == {UNPROVEN: [messages[0]]}
    assert published.left.keys() == {"a"}
    assert broker.looks == [{HERE}]  # nothing required is left to look for
    assert state.closed_routes == {str(HERE): UNPROVEN}


async def test_a_claim_is_not_held_for_longer_than_said() -> None:
    """
    No wave begins later than `hold_seconds` after the first: what is left stays pending.
    """
    broker = Broker()

    published, _, _ = await publish(broker, [make_message(1, "a"), make_message(2, "a")], hold_seconds=0.0)

    assert broker.waves == [[1]]
    assert published.left.keys() == {"a"}
