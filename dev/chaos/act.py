"""One fault in execution: what it may touch, and what it has to tell."""

import random
from collections.abc import Awaitable, Callable

import msgspec

from dev.chaos.clients import Clients
from dev.chaos.ledger import now
from dev.chaos.recorder import Recorder
from dev.chaos.stage import Stage


class Planned(msgspec.Struct, frozen=True):
    """A fault of a schedule: what, where, when, how long; `luck` seeds whatever it decides by itself."""

    at: float
    kind: str
    place: str
    seconds: float
    luck: int


class Record(msgspec.Struct, kw_only=True):
    """What became of a planned fault. Times are seconds since the beginning of the run."""

    planned: Planned
    fired_at: float | None = None
    healed_at: float | None = None
    detail: str = ""
    in_flight: int = 0  # requests without an answer, and accepted orders without an end, when it fired
    alone: bool = True  # no other fault was at work until the system had recovered
    recovery_seconds: float | None = None  # until all that was accepted before it ended had come to its end
    error: str = ""


class Act:
    """What a fault's function is given."""

    def __init__(
        self,
        stage: Stage,
        clients: Clients,
        recorder: Recorder,
        record: Record,
        began: float,
        on_healed: Callable[[set[str]], None],
    ) -> None:
        """`on_healed` is told which orders were unfinished when the fault was over."""
        self.stage = stage
        self.clients = clients
        self.recorder = recorder
        self.record = record
        self.rng = random.Random(record.planned.luck)
        self._began = began
        self._on_healed = on_healed

    @property
    def place(self) -> str:
        return self.record.planned.place

    @property
    def seconds(self) -> float:
        return self.record.planned.seconds

    def fired(self, detail: str = "") -> None:
        """It has happened. Called once, by every fault."""
        if self.record.fired_at is None:
            self.record.fired_at = now() - self._began
            self.record.in_flight = self.clients.in_flight + len(self.unfinished())
        self.record.detail = detail

    def healed(self) -> None:
        """It is over: from here on the system has to help itself."""
        if self.record.healed_at is None:
            self.record.healed_at = now() - self._began
            self._on_healed(self.unfinished())

    def unfinished(self) -> set[str]:
        """The orders that were accepted and have not ended yet, as seen from outside."""
        ended = self.recorder.ended
        return {order_id for order_id in self.clients.accepted if order_id not in ended}


Fault = Callable[[Act], Awaitable[None]]


class FaultKind(msgspec.Struct, frozen=True):
    """A kind of fault: where it may happen, what it keeps to itself meanwhile, how often it comes, how long."""

    id: str
    title: str
    run: Fault
    places: tuple[str, ...]
    weight: float
    seconds: tuple[float, float]
    keeps: Callable[[str], tuple[str, ...]]


KINDS: dict[str, FaultKind] = {}


def itself(place: str) -> tuple[str, ...]:
    """Keep the place, and nothing else."""
    return (place,)


def kind(
    id_: str,
    title: str,
    places: tuple[str, ...],
    *,
    weight: float = 1.0,
    seconds: tuple[float, float] = (0.0, 0.0),
    keeps: Callable[[str], tuple[str, ...]] = itself,
) -> Callable[[Fault], Fault]:
    """Put a function on the list of faults."""

    def register(fault: Fault) -> Fault:
        assert id_ not in KINDS, id_
        KINDS[id_] = FaultKind(id_, title, fault, places, weight, seconds, keeps)
        return fault

    return register
