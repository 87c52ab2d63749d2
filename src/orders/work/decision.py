"""Decide what follows a run of a handler; `delivery` acts on the decision."""

from typing import assert_never

import msgspec

from orders.database.finish_orders import FailureKind, Finished
from orders.runtime.retry_pauses import backoff
from orders.work.runner import (
    ChildDied,
    Committed,
    HandlerFailed,
    HandlerRefused,
    RunOutcome,
    Succeeded,
    TransientFailure,
)

FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 30.0


class EndOrder(msgspec.Struct, frozen=True):
    """Write the end of the order: done, or failed if there is a reason. `kind`: that of the dead letter it leaves."""

    failure_reason: str | None = None
    kind: FailureKind | None = None
    error: str | None = None  # the class of the handler's error
    details: str | None = None  # the reason for operators, where clients read another one


class OrderEnded(msgspec.Struct, frozen=True):
    """The handler's transaction wrote the end of the order. `finished` is None if another claim owns the order now."""

    finished: Finished | None


class RetryLater(msgspec.Struct, frozen=True):
    """Count a failure, and deliver the order again in `seconds`."""

    seconds: float
    reason: str
    error: str | None = None  # the class of the handler's error


class RunAgain(msgspec.Struct, frozen=True):
    """The outcome is unknown: claim the order and run its handler again, without counting a failure."""

    reason: str


class MarkPoison(msgspec.Struct, frozen=True):
    """Record why the order is poison, and send its message to the dead letters."""

    reason: str


Decision = EndOrder | OrderEnded | RetryLater | RunAgain | MarkPoison


def decide(outcome: RunOutcome, failures: int, max_failures: int) -> Decision:
    """Decide what follows an outcome. `failures`: of the handler before this run; `max_failures`: WORK_MAX_ATTEMPTS."""
    match outcome:
        case Succeeded():
            return EndOrder()
        case Committed(finished):
            return OrderEnded(finished)
        case HandlerRefused(reason):
            return EndOrder(reason, "refused", "Refuse")
        case HandlerFailed(reason, _, error, public) if failures + 1 >= max_failures:
            count = f"(attempt {failures + 1} of {max_failures})"
            if public is None:
                return EndOrder(f"{reason} {count}", "exhausted", error)
            return EndOrder(f"{public} {count}", "exhausted", error, f"{reason} {count}")
        case HandlerFailed(reason, after, error):
            return RetryLater(retry_seconds(failures) if after is None else max(0.0, after), reason, error)
        case TransientFailure(reason):
            return RunAgain(reason)
        case ChildDied(reason):
            return MarkPoison(reason)
        case _:
            assert_never(outcome)


def retry_seconds(failures: int) -> float:
    """Return the seconds to wait after `failures` failures: doubled each time, less up to half of it at random."""
    first = min(FIRST_RETRY_SECONDS * 2 ** min(failures, 20), MAX_RETRY_SECONDS)
    return next(backoff(first, first))
