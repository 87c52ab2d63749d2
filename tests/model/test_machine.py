"""An adversarial scheduler over the decisions that the product runs on; what it must find is planted, too."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from orders.database.claim_orders import Claim, Held, Orphaned, Seen, Settled, claim_of
from orders.model.work_message import WorkMessage
from orders.work import decision
from orders.work.decision import Decision
from orders.work.runner import HandlerFailed, RunOutcome, TransientFailure
from relay.mark import LowWaterMark
from relay.message import Answer, Message, Reply, Route
from relay.replies import Classified, Sent, classify
from relay.waves import Waves
from tests.model import orders_world
from tests.model.relay_world import Broken, Decisions, Mood, World

pytestmark = pytest.mark.long

KEYS = ["a", "b"]
ROUTES = ["order.placed", "order.redriven"]
RELAYS = st.sampled_from(["one", "two"])
OFTEN = st.sampled_from([True, True, False])
MOODS: list[Mood] = ["confirm", "confirm", "confirm", "nack", "return", "refuse", "silence", "given up"]


class RelayMachine(RuleBasedStateMachine):
    """Writers, two relays and a broker, each of which takes its next step when it suits the adversary."""

    decide = Decisions()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.decide)

    @precondition(lambda self: len(self.world.rows) < 12)
    @rule(key=st.sampled_from(KEYS), route=st.sampled_from(ROUTES), required=st.booleans(), commits=OFTEN)
    def write(self, key: str, route: str, required: bool, commits: bool) -> None:
        self.world.draw(key, route, required)
        if commits:
            self.world.end(key, "pending")

    @precondition(lambda self: self.world.open)
    @rule(at=st.integers(0, 1), state=st.sampled_from(["pending", "pending", "rolled back"]))
    def end(self, at: int, state: str) -> None:
        keys = sorted(self.world.open)
        self.world.end(keys[at % len(keys)], state)

    @rule(
        name=RELAYS,
        keys=st.sampled_from([["a", "b"], ["a", "b"], ["a"], ["b"]]),
        most=st.sampled_from([1, 2, 9, 9]),
        late=st.sampled_from([False, False, False, True]),
        unproven=st.sampled_from([*[None] * 8, *ROUTES]),
    )
    def go_on(self, name: str, keys: list[str], most: int, late: bool, unproven: str | None) -> None:
        self.world.go_on(self.world.relays[name], keys, most, out_of_time=late, unproven=unproven)

    @precondition(lambda self: any(relay.socket for relay in self.world.relays.values()))
    @rule(name=RELAYS, mood=st.sampled_from(MOODS))
    def answer(self, name: str, mood: Mood) -> None:
        relay = self.world.relays[name]
        if not relay.socket:
            relay = next(other for other in self.world.relays.values() if other.socket)
        self.world.answer(relay, mood)

    @precondition(lambda self: self.world.late)
    @rule(at=st.integers(0, 5))
    def come_late(self, at: int) -> None:
        self.world.come_late(at % len(self.world.late))

    @rule(name=RELAYS, statements=st.integers(1, 6))
    def move_mark(self, name: str, statements: int) -> None:
        for _ in range(statements):
            self.world.move_mark(self.world.relays[name])

    @rule(
        name=RELAYS,
        what=st.sampled_from(["time", "session ends", "begins again", "route fails", "route fails"]),
        route=st.sampled_from(ROUTES),
    )
    def elsewhere(self, name: str, what: str, route: str) -> None:
        """One rule for what matters less often, or hardly any claim would come to its end."""
        relay = self.world.relays[name]
        match what:
            case "time":
                self.world.now += 1.0
            case "session ends":
                self.world.end_session(relay)
            case "begins again":
                self.world.begin_again(relay)
            case "route fails":
                self.world.fail_elsewhere(relay, route)

    def teardown(self) -> None:
        self.world.settle()


WORKERS = st.integers(0, 1)


class WorkerMachine(RuleBasedStateMachine):
    """A client, two workers and a queue, each of which does what it does when it suits the adversary."""

    decide = orders_world.Decisions()

    def __init__(self) -> None:
        super().__init__()
        self.world = orders_world.World(self.decide)

    @rule(at=WORKERS)
    def deliver(self, at: int) -> None:
        self.world.deliver(at)

    @precondition(lambda self: any(self.world.jobs))
    @rule(at=WORKERS, which=st.integers(0, 2), outcome=st.sampled_from(sorted(orders_world.OUTCOMES)))
    def go_on(self, at: int, which: int, outcome: str) -> None:
        self.world.go_on(at if self.world.jobs[at] else 1 - at, which, outcome)

    @precondition(lambda self: any(self.world.jobs))
    @rule(at=WORKERS, outcome=st.sampled_from(["done", "again", "transient"]))
    def go_on_as_usual(self, at: int, outcome: str) -> None:
        self.world.go_on(at if self.world.jobs[at] else 1 - at, 0, outcome)

    @rule(at=WORKERS, what=st.sampled_from(["dies", "loses its lock", "takes its lock", "takes its lock"]))
    def worker_fails(self, at: int, what: str) -> None:
        match what:
            case "dies":
                self.world.dies(at)
            case "loses its lock":
                self.world.loses_its_lock(at)
            case "takes its lock":
                self.world.takes_its_lock(at)

    @rule(what=st.sampled_from(["repeat", "forge", "forge old", "cancel", "redrive", "retry", "retry"]))
    def elsewhere(self, what: str) -> None:
        match what:
            case "repeat":
                self.world.repeat()
            case "forge":
                self.world.forge(version=99)
            case "forge old":
                self.world.forge(version=0)
            case "cancel":
                self.world.cancel()
            case "redrive":
                self.world.redrive()
            case "retry":
                self.world.retry_is_due()

    def teardown(self) -> None:
        self.world.settle()


def settings_of(examples: int, steps: int) -> settings:
    """The same examples each time: what is found today is found tomorrow."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def test_the_relay_keeps_its_promises() -> None:
    """
    P3 and P4, and that nothing waits for good, under every schedule that was tried.
    """
    run_state_machine_as_test(RelayMachine, settings=settings_of(200, 40))


def test_the_worker_keeps_its_promises() -> None:
    """
    P5, P6 and P7 under every schedule that was tried: one end, under its own attempt, for its own failures alone.
    """
    run_state_machine_as_test(WorkerMachine, settings=settings_of(200, 40))


def is_broken(machine: type[RuleBasedStateMachine]) -> bool:
    """Search for a schedule that breaks a promise.

    Hypothesis draws from the constants of all modules that are imported, so any change of the product makes other
    examples of the first thousand, and now and then a bug slips through those.
    """
    for steps in (40, 60, 80):
        try:
            run_state_machine_as_test(machine, settings=settings_of(1000, steps))
        except Broken:
            return True
    return False


class NoWaves(Waves):
    """All messages of a key at once."""

    def next(self) -> list[Message]:
        return [message for queue in self._queues.values() for message in reversed(queue)]

    def passed(self, message: Message) -> None:
        left = [other for other in self._queues.pop(message.key, []) if other != message]
        if left:
            self._queues[message.key] = left

    def stopped(self, message: Message) -> list[Message]:
        return self._queues.pop(message.key, [])[::-1]

    def put_off(self, message: Message) -> None:
        self.stopped(message)


class NothingIsLeft(Waves):
    """What stays pending keeps nobody behind it."""

    def left(self) -> dict[str, list[Message]]:
        return {}


class StopsAlone(Waves):
    """A message that has to wait does not keep those behind it."""

    def stopped(self, message: Message) -> list[Message]:
        self.passed(message)
        return [message]


class TimedMark(LowWaterMark):
    """After a while, everybody will have committed."""

    def observe(self, last_value: int, holders: object) -> None:
        super().observe(last_value, ())


def trusting_classify(message: Message, reply: Reply) -> Classified:
    """No answer is a good answer."""
    return Sent() if reply.answer is Answer.UNANSWERED else classify(message, reply)


def rash_classify(message: Message, reply: Reply) -> Classified:
    """Whatever came back from the broker has been there."""
    return Sent() if reply.answer is Answer.RETURNED else classify(message, reply)


def hasty_sort_out(
    messages: list[Message], is_open: Callable[[Route], bool], _: int
) -> tuple[list[Message], list[Message]]:
    """Nobody waits for the earlier rows of a key."""
    return [message for message in messages if is_open(message.route)], [m for m in messages if not is_open(m.route)]


PLANTED = {
    "no waves": Decisions(waves=NoWaves),
    "parked behind what stays pending": Decisions(waves=NothingIsLeft),
    "what waits keeps nobody": Decisions(waves=StopsAlone),
    "timed mark": Decisions(mark=TimedMark),
    "silence is a confirm": Decisions(classify=trusting_classify),
    "a return is a confirm": Decisions(classify=rash_classify),
    "a waiting key is overtaken": Decisions(sort_out=hasty_sort_out),
}


def greedy_claim_of(seen: Seen, message: WorkMessage, worker: int) -> Claim | Orphaned:
    """Whoever has the order has had it long enough."""
    found = claim_of(seen, message, worker)
    return Orphaned(seen.worker, seen.attempts) if isinstance(found, Held) and seen.worker is not None else found


def credulous_claim_of(seen: Seen, message: WorkMessage, worker: int) -> Claim | Orphaned:
    """A message about an order is a message about an order."""
    return claim_of(msgspec.structs.replace(seen, event_id=message.event_id), message, worker)


def impatient_claim_of(seen: Seen, message: WorkMessage, worker: int) -> Claim | Orphaned:
    """Who waits for a retry may as well have it now."""
    return claim_of(msgspec.structs.replace(seen, is_postponed=False), message, worker)


def careless_claim_of(seen: Seen, message: WorkMessage, worker: int) -> Claim | Orphaned:
    """An order that is being worked needs no second message."""
    found = claim_of(seen, message, worker)
    return Settled(seen.status) if isinstance(found, Orphaned | Held) else found


def count_every_failure(outcome: RunOutcome, failures: int, max_failures: int) -> Decision:
    """A failure is a failure, whoever's it is."""
    return decision.decide(
        HandlerFailed(outcome.reason) if isinstance(outcome, TransientFailure) else outcome, failures, max_failures
    )


def count_one_too_many(outcome: RunOutcome, failures: int, max_failures: int) -> Decision:
    """The budget is one less than was said."""
    return decision.decide(outcome, failures + 1, max_failures)


PLANTED_IN_ORDERS = {
    "taken from a living worker": orders_world.Decisions(claim_of=greedy_claim_of),
    "any event will do": orders_world.Decisions(claim_of=credulous_claim_of),
    "a retry is not waited for": orders_world.Decisions(claim_of=impatient_claim_of),
    "acked while another works it": orders_world.Decisions(claim_of=careless_claim_of),
    "a transient failure spends the budget": orders_world.Decisions(decide=count_every_failure),
    "the budget ends early": orders_world.Decisions(decide=count_one_too_many),
}


@pytest.mark.parametrize("bug", PLANTED_IN_ORDERS)
def test_the_machine_finds_a_bug_planted_in_the_worker(bug: str) -> None:
    """
    A decision that is wrong breaks a promise within 1,000 examples, or within two thousand of longer schedules.
    """

    class Planted(WorkerMachine):
        decide = PLANTED_IN_ORDERS[bug]

    assert is_broken(Planted)


@pytest.mark.parametrize("bug", PLANTED)
def test_the_machine_finds_a_bug_planted_in_the_relay(bug: str) -> None:
    """
    A protocol with a bug breaks a promise within 1,000 examples, or within two thousand of longer schedules.
    """

    class Planted(RelayMachine):
        decide = PLANTED[bug]

    assert is_broken(Planted)
