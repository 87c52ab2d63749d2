"""Classify a database error by its SQLSTATE; every caller that runs a statement again asks here."""

from enum import Enum

import psycopg

# Everything that a statement may raise because of PostgreSQL, the connection, or a value that cannot be sent.
STATEMENT_ERRORS = (psycopg.Error, ValueError, OverflowError)


class ErrorClass(Enum):
    """What an error means for the batch that it ended: whether to run it again, and where."""

    ONE_IS_GUILTY = "a row is refused: run the rows one by one"
    PARTITION_MISSING = "the outbox has no partition for the next id: make one and run the batch again"
    RUN_AGAIN = "nobody's fault, the connection is good: run the batch again"
    CONNECTION_LOST = "nobody's fault, the outcome may be unknown: run the batch again on another connection"
    TOO_SLOW = "cut off at its deadline, the outcome unknown: run half of it again on another connection"

    @property
    def needs_another_connection(self) -> bool:
        """Whether the connection is lost, or was severed."""
        return self in {ErrorClass.CONNECTION_LOST, ErrorClass.TOO_SLOW}


def classify(error: Exception, *, timed_out: bool = False) -> ErrorClass:
    """Classify an error that a statement raised, by its SQLSTATE; `timed_out`: after its deadline had passed.

    Classes 22 (data) and 23 (constraints) are the fault of a row; 23514 without a constraint's name is a missing
    partition. After class 40 (deadlock, serialization) and 55 (locks) the connection is as good as before. Everything
    else is the server's: connections lost (08), read-only after a demotion (25006), no resources (53), shut down (57),
    I/O (58).
    """
    lost = ErrorClass.TOO_SLOW if timed_out else ErrorClass.CONNECTION_LOST
    if isinstance(error, psycopg.DataError | ValueError | OverflowError) and getattr(error, "sqlstate", None) is None:
        return ErrorClass.ONE_IS_GUILTY  # never sent: a value that cannot be encoded
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return lost
    state = error.sqlstate
    if state == "23514" and not error.diag.constraint_name:
        return ErrorClass.PARTITION_MISSING
    if state[:2] in {"22", "23"}:
        return ErrorClass.ONE_IS_GUILTY
    if state[:2] in {"40", "55"} and state != "55P04":
        return ErrorClass.RUN_AGAIN
    return lost


def is_server_failure(error: Exception) -> bool:
    """Whether PostgreSQL said that it cannot work now: demoted, out of resources, shut down, or an I/O error.

    A statement that was cancelled (57014) is not: its own deadline may have ended it.
    """
    state = (isinstance(error, psycopg.Error) and error.sqlstate) or ""
    return state == "25006" or (state[:2] in {"08", "53", "57", "58"} and state != "57014")
