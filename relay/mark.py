"""The low-water mark: below it no row is pending, nor will ever be.

Ids are drawn early and committed late. An id that was the sequence's last value at some moment is settled when every
transaction that held a writer's lock on the outbox at that moment has ended: whoever drew an id up to it held that lock
then, or had ended already. Read the sequence first and the holders after it, or a writer slips in between.
The mark then follows the lowest pending row, which must be looked up by a later statement: the list of locks shows the
present, a snapshot the past.
"""

from collections.abc import Iterable

PREPARED = "-1/"  # pg_locks shows a prepared transaction under this: its holder has a new name since PREPARE


class LowWaterMark:
    """The mark, and the id up to which no writer is left."""

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.settled = mark
        self._candidate: int | None = None
        self._holders: frozenset[str] = frozenset()

    def observe(self, last_value: int, holders: Iterable[str]) -> None:
        """Take note of the sequence's last value and of the writers that were seen after it was read."""
        seen = frozenset(holders)
        if self._candidate is not None:
            # A prepared transaction may be any of those we wait for, under its new name.
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
        """Follow the lowest pending row up to `settled`, as a statement after `observe` saw it; None is none."""
        reach = self.settled if lowest_pending is None else min(self.settled, lowest_pending - 1)
        self.mark = max(self.mark, reach)
