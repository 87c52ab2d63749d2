"""Log the traceback of each kind of failure of a handler, once in a minute, and count the others."""

import asyncio
import logging
from hashlib import sha256
from types import TracebackType
from typing import NamedTuple
from uuid import UUID

log = logging.getLogger(__name__)

QUIET_SECONDS = 60.0


class FailureKind(NamedTuple):
    """The kind of an error: its class, and the line of code that raised it. Messages differ from order to order."""

    error: type[Exception]
    file: str
    line: int

    @property
    def reference(self) -> str:
        """Eight hexadecimal digits, the same in every process, by which a client's reason leads to the traceback."""
        return sha256(f"{self.error.__qualname__} {self.file}:{self.line}".encode()).hexdigest()[:8]


class FailureLog:
    """Owns the counts of the current minute. Needs a running loop."""

    def __init__(self) -> None:
        self._repeats: dict[FailureKind, int] = {}  # since the traceback was logged, at most QUIET_SECONDS ago

    def add(self, order_id: UUID, error: Exception) -> None:
        """Log an error of a handler with its traceback, or count it if its kind was logged within the last minute."""
        kind = kind_of(error)
        if kind in self._repeats:
            self._repeats[kind] += 1
            return
        self._repeats[kind] = 0
        log.warning("order %s: its handler failed, reference %s", order_id, kind.reference, exc_info=error)
        asyncio.get_running_loop().call_later(QUIET_SECONDS, self._end, kind)

    def close(self) -> None:
        """Log the counts of the current minute."""
        for kind in list(self._repeats):
            self._end(kind)

    def _end(self, kind: FailureKind) -> None:
        if repeats := self._repeats.pop(kind, 0):
            log.warning(
                "%s more runs of the handler failed with %s at %s:%s, reference %s",
                repeats, kind.error.__name__, kind.file, kind.line, kind.reference,
            )  # fmt: skip


def kind_of(error: Exception) -> FailureKind:
    """Return the kind of an error; an error that was never raised has no line."""
    trace: TracebackType | None = error.__traceback__
    if trace is None:
        return FailureKind(type(error), "", 0)
    while trace.tb_next is not None:
        trace = trace.tb_next
    return FailureKind(type(error), trace.tb_frame.f_code.co_filename, trace.tb_lineno)
