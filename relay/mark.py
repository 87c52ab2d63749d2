"""The low-water mark: no row with this id or a lower one is pending, nor will ever be.

Ids are drawn early and committed late. The sequence's last value at some moment is settled when every transaction that
held a writer's lock on the outbox at that moment has ended: each transaction that drew an id up to it held that lock
then, or had ended already. Read the sequence first and the holders after it: in the other order a writer could draw an
id in between. The mark then follows the lowest pending row. A later statement has to look it up, since the list of
locks shows the present and a snapshot the past.
"""

from collections.abc import Iterable

PREPARED = "-1/"  # pg_locks shows a prepared transaction by a name that begins so: PREPARE has changed its name


class LowWaterMark:
    """The mark, and the id up to which no writer is left (`settled`); `mark <= settled`."""

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.settled = mark
        self._candidate: int | None = None
        self._holders: frozenset[str] = frozenset()

    def observe(self, last_value: int, holders: Iterable[str]) -> None:
        """Record the sequence's last value, and the transactions that held a writer's lock after it was read."""
        seen = frozenset(holders)
        if self._candidate is not None:
            # A prepared transaction may be one of the holders, under its new name.
            self._holders = (self._holders & seen) | {name for name in seen if name.startswith(PREPARED)}
            if self._holders:
                return
            self.settled = self._candidate
            self._candidate = None
        if last_value <= self.settled:
            return
        if seen:
            self._candidate = last_value
            self._holders = seen
        else:
            self.settled = last_value

    def advance(self, lowest_pending: int | None) -> None:
        """Move the mark up to `settled`, but stay below the lowest pending row.

        A statement after `observe` has to have read `lowest_pending`, the id of that row; None is no such row.
        """
        reach = self.settled if lowest_pending is None else min(self.settled, lowest_pending - 1)
        self.mark = max(self.mark, reach)
