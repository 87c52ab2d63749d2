"""When the low-water mark may pass an id."""

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.mark import LowWaterMark


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
