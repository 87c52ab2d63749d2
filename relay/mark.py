"""The low-water mark: no row with this id or a lower one is pending, nor will ever be.

Ids are drawn early and committed late. The sequence's last value at some moment is settled when every transaction that
held a writer's lock on the outbox at that moment has ended: each transaction that drew an id up to it held that lock
then, or had ended already. Read the sequence first and the holders after it: in the other order a writer could draw an
id in between. The mark then follows the lowest pending row. A later statement has to look it up, since the list of
locks shows the present and a snapshot the past.

A transaction that stays open for long holds the mark. Claims then start above a floor: nothing at or below it is
pending as long as those transactions stay open. After a claim a later statement asks whether they do; when one has
ended, the floor falls to where that one began to draw ids, and the claim is made again.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import msgspec

YOUNG_ROWS = 5000  # a transaction that began so few ids ago bounds the floor: most of them end soon
PREPARED = "-1/"  # pg_locks shows a prepared transaction by a name that begins so: PREPARE has changed its name


class Writer(NamedTuple):
    """A transaction that holds a writer's lock on the outbox."""

    name: str  # as pg_locks names it
    xid: int | None  # None: it has none yet, or ends at this moment


class Holder(msgspec.Struct, frozen=True):
    """Who holds the mark: the oldest of the transactions that the floor leans on."""

    pid: int  # 0 for a prepared transaction
    name: str  # its application_name, or the name under which it was prepared
    prepared: bool
    since: float | None  # seconds since the epoch; None if this role may not see it


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


class Floor:
    """The id that claims start above, and the transactions that it leans on (`fence`); `mark <= id <= reach`."""

    def __init__(self, mark: int) -> None:
        self.id = mark
        self.reach = mark  # how far it may rise at most
        self.fence: dict[int, int] = {}  # by xid: all ids that this open transaction has drawn lie above the value
        self._mark = mark
        self._last_value = mark
        self._since: dict[str, int] = {}  # the same by name, for every writer that was seen last

    def observe(self, last_value: int, writers: Iterable[Writer]) -> None:
        """Record the sequence's last value, and the writers that were there after it was read.

        A writer that was not there the last time has drawn no id up to the last value of that time.
        """
        present = list(writers)
        since = {writer.name: self._since.get(writer.name, self._begin(writer)) for writer in present}
        self.only_open({writer.xid for writer in present if writer.xid is not None})
        bounds, self.fence = [last_value], {}
        for name, xid in present:
            if xid is None or last_value - since[name] < YOUNG_ROWS:
                bounds.append(since[name])
            else:
                self.fence[xid] = since[name]
        self.reach = max(self.id, min(bounds))
        self._since, self._last_value = since, last_value

    def only_open(self, xids: Collection[int]) -> bool:
        """Fall to where the ended transactions of the fence began; return whether any has ended. `xids`: still open."""
        ended = self.fence.keys() - xids
        for xid in ended:
            self.id = min(self.id, self.fence.pop(xid))
        return bool(ended)

    def rise(self, lowest_pending: int | None, upto: int) -> None:
        """Rise to `upto`, at most to `reach`, but stay below the lowest pending row between the floor and there.

        A statement after `observe` has to have read `lowest_pending`, the id of that row; None is no such row.
        """
        self.id = max(self.id, upto if lowest_pending is None else lowest_pending - 1)

    def _begin(self, writer: Writer) -> int:
        # A prepared transaction under a new name may have drawn ids under another one.
        return self._mark if writer.name.startswith(PREPARED) else self._last_value
