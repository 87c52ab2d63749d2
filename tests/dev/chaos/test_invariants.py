"""Each invariant is broken once by hand, and found: a checker that cannot fail proves nothing."""

from collections.abc import Callable

import msgspec
import pytest

from dev.chaos import invariants
from dev.chaos.act import Planned, Record
from dev.chaos.effect import Effect
from dev.chaos.evidence import Evidence, OrderRow, OutboxRow, Sample
from dev.chaos.ledger import Answer, Forgotten, Intent
from dev.chaos.recorder import Heard

A, B = "0190-a", "0190-b"


def healthy() -> Evidence:
    """Two orders that were asked for, placed, worked, done and told."""
    return Evidence(
        intents=[Intent("key-a", 1, 0.0), Intent("key-b", 2, 0.0)],
        answers=[Answer("key-a", 1, 201, A, 1.0), Answer("key-b", 2, 503, "", 1.0), Answer("key-b", 2, 201, B, 2.0)],
        heard=[
            Heard(f"{kind}-{order_id}", kind, order_id, version, redelivered, 3.0)
            for order_id in (A, B)
            for kind, version, redelivered in (("order.placed", 1, False), ("order.done", 3, True))
        ],
        effects=[Effect(A, 2, 1, 1, "worker-1", 3.0), Effect(B, 2, 1, 2, "worker-2", 3.0)],
        orders=[OrderRow(A, "done", 3, 1, 1), OrderRow(B, "done", 3, 1, 2)],
        rows=[
            OutboxRow(number, f"{kind}-{order_id}", order_id, "orders", kind, "sent")
            for number, (order_id, kind) in enumerate(
                (order_id, kind) for order_id in (A, B) for kind in ("order.placed", "order.done")
            )
        ],
        keys={"key-a": A, "key-b": B},
        settled_seconds=1.0,
        reconciled_orders=2,
        before=[Sample("api-1", 60.0, 20)],
        after=[Sample("api-1", 70.0, 25)],
    )


def broken(evidence: Evidence) -> set[str]:
    """Return the invariants that the evidence breaks."""
    return {result.id for result in invariants.check_all(evidence) if result.violations}


def with_(evidence: Evidence, **changes: object) -> Evidence:
    """The same evidence, but for this."""
    return msgspec.structs.replace(evidence, **changes)


def test_a_healthy_run_breaks_nothing() -> None:
    """
    All invariants hold, and each was held against something.
    """
    results = invariants.check_all(healthy())

    assert set() == broken(healthy())
    assert [f"I{number}" for number in (*range(1, 14), 15)] == [result.id for result in results]
    assert all(result.checked for result in results)


SABOTAGE: dict[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "an acknowledged order is not there": ("I1", lambda e: with_(e, orders=e.orders[:1])),
    "an order is not what was asked for": (
        "I1", lambda e: with_(e, answers=[msgspec.structs.replace(e.answers[0], number=9), *e.answers[1:]])),
    "one key was answered with two orders": (
        "I2", lambda e: with_(e, answers=[*e.answers, Answer("key-a", 1, 201, B, 4.0)])),
    "an order that nobody asked for": (
        "I2", lambda e: with_(e, orders=[*e.orders, OrderRow("0190-c", "done", 3, 1, 0)])),
    "an order without its event": ("I3", lambda e: with_(e, rows=e.rows[2:])),
    "an event without its order": (
        "I3", lambda e: with_(e, rows=[*e.rows, OutboxRow(9, "x", "0190-c", "orders", "order.placed", "sent")])),
    "an event that nobody heard": ("I4", lambda e: with_(e, heard=e.heard[1:])),
    "two ends": (
        "I5", lambda e: with_(e, rows=[*e.rows, OutboxRow(9, "x", A, "orders", "order.done", "sent")])),
    "done without an effect": ("I5", lambda e: with_(e, effects=e.effects[1:])),
    "the end heard before the beginning": ("I6", lambda e: with_(e, heard=[e.heard[1], e.heard[0], *e.heard[2:]])),
    "an order that never ends": (
        "I7", lambda e: with_(e, orders=[OrderRow(A, "processing", 2, 1, 1), e.orders[1]])),
    "an order that is done and was told to have failed": (
        "I7", lambda e: with_(e, orders=[OrderRow(A, "cancelled", 2, 1, 1), e.orders[1]])),
    "a dead letter that was no poison": ("I8", lambda e: with_(e, dead_orders=[A])),
    "an order that failed of itself": ("I8", lambda e: with_(e, orders=[OrderRow(A, "failed", 3, 1, 1)])),
    "two workers under one claim": (
        "I9", lambda e: with_(e, effects=[*e.effects, Effect(A, 2, 1, 1, "worker-3", 3.0)])),
    "an effect of another sum": (
        "I10", lambda e: with_(e, effects=[Effect(A, 2, 1, 7, "worker-1", 3.0), *e.effects[1:]])),
    "an answer of 500": ("I11", lambda e: with_(e, answers=[*e.answers, Answer("key-a", 1, 500, "", 4.0)])),
    "it does not settle": ("I12", lambda e: with_(e, settled_seconds=None)),
    "reconcile finds something": ("I15", lambda e: with_(e, reconciled=[f"{A}: lost"])),
    "memory is kept": ("I13", lambda e: with_(e, after=[Sample("api-1", 999.0, 20)])),
    "connections are kept": ("I13", lambda e: with_(e, connections_after=99)),
    "tasks are kept": ("I13", lambda e: with_(e, after=[Sample("api-1", 60.0, 20, tasks=99)])),
    "dead rows are kept": ("I13", lambda e: with_(e, dead_rows=1)),
    "an effect that was committed twice": (
        "I5", lambda e: with_(e, exactly_once=True, effects=[*e.effects, Effect(A, 4, 2, 1, "worker-1", 3.0)])),
}  # fmt: skip


@pytest.mark.parametrize(("invariant", "sabotage"), SABOTAGE.values(), ids=SABOTAGE)
def test_each_invariant_can_be_broken(invariant: str, sabotage: Callable[[Evidence], Evidence]) -> None:
    """
    What is wrong is found, under its own name.
    """
    assert invariant in broken(sabotage(healthy()))


def test_a_redriven_order_ends_twice() -> None:
    """
    Once for each of its lives; a third end would be one too many.
    """
    evidence = healthy()
    told = [("order.redriven", "1"), ("order.done", "2")]
    lived_twice = with_(
        evidence,
        rows=[*evidence.rows, *(OutboxRow(10, f"{n}", A, "orders", kind, "sent") for kind, n in told)],
        heard=[*evidence.heard, *(Heard(n, kind, A, 4, False, 4.0) for kind, n in told)],
    )

    assert set() == broken(lived_twice)
    third = OutboxRow(12, "3", A, "orders", "order.done", "sent")
    assert {"I5"} <= broken(with_(lived_twice, rows=[*lived_twice.rows, third]))


def test_a_forgotten_key_may_stand_for_another_order() -> None:
    """
    Only after the service let go of it, and the first order is still somebody's.
    """
    evidence = healthy()
    twice = with_(
        evidence,
        answers=[*evidence.answers, Answer("key-a", 1, 201, B, 4.0)],
        keys={"key-a": B},
        intents=[Intent("key-a", 1, 0.0)],
    )

    assert "I2" in broken(twice)
    assert "I2" not in broken(with_(twice, forgotten=[Forgotten("key-a", A, 3.0)], answers=twice.answers[::3]))


def record(kind: str = "H1", **changes: object) -> Record:
    """A fault that fired while something was in flight."""
    made = Record(planned=Planned(1.0, kind, "clients", 0.0, 1), fired_at=1.0, healed_at=1.0, in_flight=3)
    return msgspec.structs.replace(made, **changes)


def test_a_run_that_tells_something_is_not_vacuous() -> None:
    """
    Orders enough, every fault fired, something was in flight, and crashes led to repeats.
    """
    assert invariants.vacuous(healthy(), [record(), record("P1")], 2) == []


@pytest.mark.parametrize(
    ("evidence", "records", "least"),
    [
        (healthy(), [record(fired_at=None)], 2),
        (healthy(), [record(error="it broke")], 2),
        (healthy(), [record()], 3),
        (healthy(), [record(in_flight=0)], 2),
        (with_(healthy(), orders=[]), [record()], 2),
        (with_(healthy(), heard=[msgspec.structs.replace(each, redelivered=False) for each in healthy().heard]),
         [record("P1")], 2),
    ],
    ids=["a fault did not fire", "a fault failed", "few orders", "nothing in flight", "no final read", "no repeat"],
)  # fmt: skip
def test_a_vacuous_run_is_called_so(evidence: Evidence, records: list[Record], least: int) -> None:
    """
    A run that cannot tell does not pass.
    """
    assert len(invariants.vacuous(evidence, records, least)) == 1
