"""When the low-water mark and the floor of the claims may pass an id."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.mark import YOUNG_ROWS, Floor, LowWaterMark, Writer


def test_without_writers_it_follows_at_once() -> None:
    """
    With nobody writing, all ids up to the last are settled, and the mark goes there.
    """
    mark = LowWaterMark(5)

    mark.observe(20, [])
    mark.advance(None)

    assert mark.mark == 20


def test_a_pending_row_holds_it() -> None:
    """
    The mark stays below the lowest pending row, and passes when that is gone.
    """
    mark = LowWaterMark(5)
    mark.observe(20, [])

    mark.advance(11)
    assert mark.mark == 10

    mark.advance(None)
    assert mark.mark == 20


def test_a_writer_holds_it_until_it_ends() -> None:
    """
    An open writer may have drawn any id up to the last: the mark waits for it, and not for those who came later.
    """
    mark = LowWaterMark(0)

    mark.observe(10, ["3/7"])
    mark.advance(None)
    assert mark.mark == 0

    mark.observe(15, ["3/7", "4/1"])
    mark.advance(None)
    assert mark.mark == 0

    mark.observe(20, ["4/1"])
    mark.advance(None)
    assert mark.mark == 10

    mark.observe(25, [])
    mark.advance(None)
    assert mark.mark == 25


def test_a_prepared_transaction_holds_it_under_its_new_name() -> None:
    """
    PREPARE gives a writer another name in pg_locks; it is still waited for.
    """
    mark = LowWaterMark(0)
    mark.observe(10, ["3/7"])

    mark.observe(10, ["-1/991"])
    mark.advance(None)
    assert mark.mark == 0

    mark.observe(10, [])
    mark.advance(None)
    assert mark.mark == 10


def test_it_never_goes_back() -> None:
    """
    A pending row below the mark, which an operator's hand may have made, does not pull it down.
    """
    mark = LowWaterMark(30)

    mark.advance(10)
    mark.observe(30, ["3/7"])
    mark.advance(None)

    assert mark.mark == 30


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_row_is_ever_passed_unsettled(data: st.DataObject) -> None:
    """
    In any interleaving of drawing, committing, rolling back, settling and looking, the mark passes no pending row and
    no id that could still become one.
    """
    mark = LowWaterMark(0)
    last = 0
    open_writers: dict[str, list[int]] = {}
    pending: set[int] = set()
    named = 0
    seen: tuple[int, list[str]] | None = None
    read: int | None = None
    for _ in range(data.draw(st.integers(5, 40))):
        match data.draw(
            st.sampled_from(["begin", "draw", "commit", "rollback", "settle", "read", "holders", "lowest"])
        ):
            case "begin":
                named += 1
                open_writers[f"3/{named}"] = []
            case "draw" if open_writers:
                last += 1
                open_writers[data.draw(st.sampled_from(sorted(open_writers)))].append(last)
            case "commit" if open_writers:
                pending |= set(open_writers.pop(data.draw(st.sampled_from(sorted(open_writers)))))
            case "rollback" if open_writers:
                open_writers.pop(data.draw(st.sampled_from(sorted(open_writers))))
            case "settle" if pending:
                pending.remove(data.draw(st.sampled_from(sorted(pending))))
            case "read":
                read = last
            case "holders" if read is not None:
                seen = (read, list(open_writers))
                read = None
                mark.observe(*seen)
            case "lowest":
                below = sorted(row for row in pending if mark.mark < row <= mark.settled)
                mark.advance(below[0] if below else None)
        assert all(row > mark.mark for row in pending)
        assert all(row > mark.mark for drawn in open_writers.values() for row in drawn)


def test_the_floor_passes_a_transaction_that_stays_open() -> None:
    """
    It rises above the ids of a transaction that began long ago, stays below those of young ones and of those without an
    xid, and falls to where a transaction began that has ended.
    """
    floor = Floor(10)
    floor.observe(20, [Writer("3/1", 700)])
    assert (floor.reach, floor.fence) == (10, {})

    last = 19 + YOUNG_ROWS
    floor.observe(last, [Writer("3/1", 700), Writer("4/1", 701), Writer("5/1", None)])
    assert (floor.reach, floor.fence) == (20, {700: 10})
    floor.observe(last + YOUNG_ROWS, [Writer("3/1", 700), Writer("4/1", 701)])
    assert (floor.reach, floor.fence) == (last + YOUNG_ROWS, {700: 10, 701: 20})
    floor.rise(None, floor.reach)

    assert not floor.only_open({700, 701})
    assert floor.only_open({700})
    assert (floor.id, floor.fence) == (20, {700: 10})
    floor.observe(last + YOUNG_ROWS, [])
    assert (floor.id, floor.reach) == (10, last + YOUNG_ROWS)
    floor.rise(15, floor.reach)
    assert floor.id == 14


def test_a_prepared_transaction_with_a_new_name_bounds_the_floor() -> None:
    """
    Under its old name it may have drawn any id above the mark.
    """
    floor = Floor(10)
    floor.observe(20, [])
    floor.rise(None, 20)

    floor.observe(20 + YOUNG_ROWS, [Writer("-1/700", 700)])

    assert (floor.reach, floor.fence) == (20 + YOUNG_ROWS, {700: 10})


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_claim_above_the_floor_misses_a_row(data: st.DataObject) -> None:
    """
    In any interleaving of drawing, writing, committing, releasing locks and looking, a claim that finds the
    transactions of the fence open has no pending row below the floor, and mark and floor pass none in the end.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relay.mark.YOUNG_ROWS", data.draw(st.integers(1, 3)))
        mark, floor = LowWaterMark(0), Floor(0)
        last = 0
        drawn: dict[int, list[int]] = {}  # by the number of an open transaction, which is its xid once it has written
        written: set[int] = set()
        listed: dict[int, int | None] = {}  # in pg_locks, a moment longer than they are open
        pending: set[int] = set()
        read: int | None = None
        steps = [
            "begin",
            "draw",
            "write",
            "commit",
            "roll back",
            "release",
            "settle",
            "read",
            "holders",
            "rise",
            "claim",
        ]
        for number in range(data.draw(st.integers(5, 60))):
            an_open = data.draw(st.sampled_from(sorted(drawn))) if drawn else None
            match data.draw(st.sampled_from(steps)):
                case "begin":
                    drawn[number], listed[number] = [], None
                case "draw" if an_open is not None:
                    last += 1
                    drawn[an_open].append(last)
                case "write" if an_open is not None:
                    written.add(an_open)
                    listed[an_open] = an_open
                case "commit" if an_open is not None and an_open in written:
                    pending |= set(drawn.pop(an_open))
                case "roll back" if an_open is not None:
                    drawn.pop(an_open)
                case "release":
                    listed = {name: xid for name, xid in listed.items() if name in drawn}
                case "settle" if pending:
                    pending.remove(data.draw(st.sampled_from(sorted(pending))))
                case "read":
                    read = last
                case "holders" if read is not None:
                    mark.observe(read, [str(name) for name in listed])
                    floor.observe(read, [Writer(str(name), xid) for name, xid in listed.items()])
                    read = None
                case "rise" if floor.id < floor.reach:
                    upto = data.draw(st.integers(floor.id + 1, floor.reach))
                    floor.rise(min((row for row in pending if floor.id < row <= upto), default=None), upto)
                    mark.advance(floor.id + 1)
                case "claim" if not floor.only_open(drawn.keys() & floor.fence):
                    assert all(row > floor.id for row in pending)
            assert mark.mark <= floor.id
            assert all(row > mark.mark for row in pending.union(*drawn.values()))
