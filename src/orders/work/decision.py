"""What becomes of an order after a run of its handler: decided here in data, done in work.py."""

from typing import assert_never

import msgspec

from orders.database.finish_orders import Finished, Kind
from orders.runtime.retry_pauses import backoff
from orders.work.runner import ChildDied, Committed, HandlerFailed, HandlerRefused, Outcome, Succeeded, TransientFailure

FIRST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 30.0


class Finish(msgspec.Struct, frozen=True):
    """Its end is to be written: done, or failed with a reason."""

    failure_reason: str | None = None
    kind: Kind | None = None


class HasFinished(msgspec.Struct, frozen=True):
    """Its end was written together with what the handler wrote, if it was ours to write."""

    finished: Finished | None


class Postpone(msgspec.Struct, frozen=True):
    """It is to come again in so many seconds."""

    seconds: float
    reason: str


class RunAgain(msgspec.Struct, frozen=True):
    """Nobody knows what came of it: it is to be claimed and run again, and no failure is counted."""

    reason: str


class Condemn(msgspec.Struct, frozen=True):
    """It is poison: its message goes to the dead letters."""

    reason: str


NextStep = Finish | HasFinished | Postpone | RunAgain | Condemn


def next_step(outcome: Outcome, failures: int, max_failures: int) -> NextStep:
    """Decide what an outcome means for an order whose handler had failed so often before this run."""
    match outcome:
        case Succeeded():
            return Finish()
        case Committed(finished):
            return HasFinished(finished)
        case HandlerRefused(reason):
            return Finish(reason, "refused")
        case HandlerFailed(reason) if failures + 1 >= max_failures:
            return Finish(f"{reason} (attempt {failures + 1} of {max_failures})", "exhausted")
        case HandlerFailed(reason, after):
            return Postpone(retry_seconds(failures) if after is None else max(0.0, after), reason)
        case TransientFailure(reason):
            return RunAgain(reason)
        case ChildDied(reason):
            return Condemn(reason)
        case _:
            assert_never(outcome)


def retry_seconds(failures: int) -> float:
    """Return how long an order waits after so many failures: doubled each time, up to half taken off at random."""
    first = min(FIRST_RETRY_SECONDS * 2 ** min(failures, 20), LONGEST_RETRY_SECONDS)
    return next(backoff(first, first))
