"""The worker's decisions in a world of one order: its row, a queue and two workers in memory, and somebody's schedule.

What the statements of claim_orders.py, finish_orders.py, postpone_orders.py and redrive_orders.py do to the row is
written down here; whatever is decided is decided by the product's own functions. Orders do not meet, so one is enough.
"""

from collections.abc import Callable
from uuid import UUID

import msgspec

from orders.database.claim_orders import Claim, Forged, Held, Orphaned, Postponed, Seen, Settled, claim_of
from orders.database.row_locks import Busy
from orders.model.order import TERMINAL, Status
from orders.model.work_message import WorkMessage
from orders.work import decision
from orders.work.decision import Decision
from orders.work.runner import ChildDied, HandlerFailed, HandlerRefused, RunOutcome, Succeeded, TransientFailure
from tests.model.relay_world import Broken

MAX_FAILURES = 2
ORDER = UUID(int=1)
ROUNDS_TO_SETTLE = 30
OUTCOMES: dict[str, RunOutcome] = {
    "done": Succeeded(),
    "again": HandlerFailed("no stock"),
    "never": HandlerRefused("no such card"),
    "transient": TransientFailure("the database went away"),
    "died": ChildDied("segmentation fault"),
}


class Decisions(msgspec.Struct, frozen=True):
    """What the worker decides with."""

    claim_of: Callable[[Seen, WorkMessage, int], Claim | Orphaned] = claim_of
    decide: Callable[[RunOutcome, int, int], Decision] = decision.decide


class Row(msgspec.Struct):
    """The order's row, and whether a retry of it waits."""

    event_id: UUID
    status: Status = "placed"
    version: int = 1
    attempts: int = 0
    worker: int | None = None
    failures: int = 0
    redrives: int = 0
    retry: WorkMessage | None = None


class Job(msgspec.Struct):
    """A delivery in a worker's hands."""

    message: WorkMessage
    orphan: Orphaned | None = None  # found by a look, to be taken over by the next statement
    attempt: int | None = None  # under which it was claimed
    failures: int = 0
    outcome: RunOutcome | None = None


class World:
    """One order, its messages, and two workers."""

    def __init__(self, decide: Decisions) -> None:
        self.decisions = decide
        self.events = 1
        self.row = Row(UUID(int=100))
        self.queue = [WorkMessage(ORDER, self.row.event_id, 1)]
        self.numbers = [1, 2]  # of the two workers
        self.locked = {1, 2}
        self.named = 2
        self.jobs: list[list[Job]] = [[], []]
        self.ends = 0  # in this life: since it was placed or redriven
        self.own_failures = 0  # of its handler, that were written down, in this life
        self.said: set[str] = set()  # what its handler has come to, in this life
        self.charged = False  # whether its handler was ever started

    def repeat(self) -> None:
        """The relay publishes the order's message once more."""
        self.queue.append(WorkMessage(ORDER, self.row.event_id, 1))

    def forge(self, version: int) -> None:
        """Somebody publishes a message about an event that never was."""
        self.queue.append(WorkMessage(ORDER, UUID(int=999), version))

    def cancel(self) -> None:
        """The client cancels, if it is not too late."""
        if self.row.status == "placed":
            self._promise(not self.charged or self.row.redrives > 0, "an order is cancelled that a handler has worked")
            self._end("cancelled")

    def redrive(self) -> None:
        """An operator brings a failed order back."""
        row = self.row
        if row.status == "failed":
            self.events += 1
            row.event_id = UUID(int=100 + self.events)
            row.status, row.version, row.failures, row.redrives = "placed", row.version + 1, 0, row.redrives + 1
            self.ends, self.own_failures, self.said = 0, 0, set()
            self.queue.append(WorkMessage(ORDER, row.event_id, row.version))

    def retry_is_due(self) -> None:
        """The message of a retry goes out."""
        if self.row.retry is not None:
            self.queue.append(self.row.retry)
            self.row.retry = None

    def dies(self, at: int) -> None:
        """A worker is killed, and another one takes its place: what it had in hand is delivered again."""
        self.locked.discard(self.numbers[at])
        self.queue += [job.message for job in self.jobs[at]]
        self.jobs[at] = []
        self.named += 1
        self.numbers[at] = self.named
        self.locked.add(self.named)

    def loses_its_lock(self, at: int) -> None:
        """A worker was stopped: its session ends, its deliveries go back, and it goes on from where it was."""
        self.locked.discard(self.numbers[at])
        self.queue += [job.message for job in self.jobs[at]]

    def takes_its_lock(self, at: int) -> None:
        """It is back."""
        self.locked.add(self.numbers[at])

    def deliver(self, at: int) -> None:
        """A worker takes the next message."""
        if self.queue and len(self.jobs[at]) < 3:
            self.jobs[at].append(Job(self.queue.pop(0)))

    def go_on(self, at: int, which: int, outcome: str) -> None:
        """The next statement of a job, or the end of its handler."""
        if not self.jobs[at]:
            return
        job = self.jobs[at][which % len(self.jobs[at])]
        if job.attempt is None:
            if self.numbers[at] in self.locked:  # a claim waits for the lock
                self._claim(at, job)
        elif job.outcome is None:
            job.outcome = OUTCOMES[outcome]
            if job.message.event_id == self.row.event_id:
                self.said.add(outcome)
        else:
            self._settle(at, job)

    def _claim(self, at: int, job: Job) -> None:
        row, number = self.row, self.numbers[at]
        if job.orphan is not None:
            orphan, job.orphan = job.orphan, None
            if row.status == "processing" and (row.worker, row.attempts) == (orphan.worker, orphan.attempts):
                self._start(job, number)
            return
        is_mine = row.status == "processing" and row.worker == number
        if row.event_id == job.message.event_id and (row.status == "placed" or is_mine):
            if row.status == "placed":
                row.status, row.version = "processing", row.version + 1
            self._start(job, number)
            return
        seen = Seen(
            status=row.status, worker=row.worker, attempts=row.attempts, event_id=row.event_id, version=row.version,
            redrives=row.redrives, is_worked=row.worker in self.locked, is_postponed=row.retry is not None,
        )  # fmt: skip
        match self.decisions.claim_of(seen, job.message, number):
            case Orphaned() as orphan:
                self._promise(not seen.is_worked, f"the order is taken from worker {seen.worker}, which is alive")
                job.orphan = orphan
            case Settled() | Postponed():
                self._ack(at, job)
            case Forged():
                self._dead_letter(at, job, "forged")
            case Held() | Busy():
                pass

    def _start(self, job: Job, number: int) -> None:
        row = self.row
        self._promise(job.message.event_id == row.event_id, "an order is worked for an event that it does not wait for")
        self._promise(row.retry is None, "an order is worked before its retry is due")
        self._promise(row.status == "processing", f"an order is worked that is {row.status}")
        row.attempts, row.worker = row.attempts + 1, number
        job.attempt, job.failures, self.charged = row.attempts, row.failures, True

    def _settle(self, at: int, job: Job) -> None:
        row = self.row
        assert job.outcome is not None
        is_ours = row.status == "processing" and row.attempts == job.attempt
        match self.decisions.decide(job.outcome, job.failures, MAX_FAILURES):
            case decision.EndOrder(None):
                if is_ours:
                    self._promise("done" in self.said, "an order is done, and its handler has not said so")
                    self._end("done")
            case decision.EndOrder(_, kind):
                if is_ours:
                    said = "never" in self.said if kind == "refused" else self.own_failures + 1 >= MAX_FAILURES
                    self._promise(said, f"an order has failed as {kind} after {self.own_failures} failures of its own")
                    self._end("failed")
            case decision.RetryLater():
                if is_ours:
                    self._promise(
                        isinstance(job.outcome, HandlerFailed), f"{job.outcome} is counted as the order's own failure"
                    )
                    self.own_failures += 1
                    row.worker, row.failures, row.retry = 0, row.failures + 1, job.message
            case decision.RunAgain():
                job.attempt = job.outcome = None
                return
            case decision.MarkPoison():
                self._dead_letter(at, job, "deadly")
                return
            case decision.OrderEnded():
                raise AssertionError("unreachable: these handlers take no connection")
        self._ack(at, job)

    def _ack(self, at: int, job: Job) -> None:
        self.jobs[at].remove(job)

    def _dead_letter(self, at: int, job: Job, kind: str) -> None:
        """dead_letters_table.py: the order fails that waits for this very event, and is not terminal."""
        self._ack(at, job)
        if job.message.event_id == self.row.event_id:
            self._promise(kind == "deadly", "an order's own message is called forged")
            if self.row.status not in TERMINAL:
                self.row.retry = None
                self._end("failed")

    def _end(self, status: Status) -> None:
        self._promise(self.row.status not in TERMINAL, f"an order that is {self.row.status} becomes {status}")
        self.ends += 1
        self._promise(self.ends == 1, "an order has ended twice")
        self.row.status, self.row.version, self.row.worker = status, self.row.version + 1, None

    def settle(self) -> None:
        """Heal everything, and let all work: the order comes to an end."""
        for _ in range(ROUNDS_TO_SETTLE):
            self.retry_is_due()
            for at in (0, 1):
                self.takes_its_lock(at)
                self.deliver(at)
                for which in range(len(self.jobs[at])):
                    self.go_on(at, which, "done")
        self._promise(self.row.status in TERMINAL, f"the order is {self.row.status} for good")

    def _promise(self, holds: bool, breach: str) -> None:
        if not holds:
            raise Broken(breach)
