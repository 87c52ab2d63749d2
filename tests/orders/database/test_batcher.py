"""Many callers, one statement: how batches form, whose fault an error is, and what becomes of everybody else."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence

import pytest
from psycopg import AsyncConnection

from dev.sandbox.wire import Wire
from orders.database.batcher import Batcher, Limits, next_max_rows, rows_to_wait_for
from orders.database.errors import ErrorClass
from orders.database.place_orders import Placed, Placement, place_orders
from orders.database.row_locks import Busy
from orders.model.errors import KeyReused, Overloaded, Refused, Unavailable
from tests.eventually import eventually
from tests.orders.samples import counts, placement

LOCK = 4711


class Bakery:
    """A statement that answers each item with a hundredth of it; the test holds it up by a lock."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.backends: list[int] = []

    async def bake(self, conn: AsyncConnection, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        self.backends.append(conn.info.backend_pid)
        await conn.execute("SELECT pg_advisory_lock_shared(%s), pg_advisory_unlock_shared(%s)", [LOCK, LOCK])
        cursor = await conn.execute("SELECT 100 / item FROM unnest(%b::bigint[]) AS item", [list(batch)])
        return [row[0] for row in await cursor.fetchall()]


@pytest.fixture
def bakery() -> Bakery:
    return Bakery()


async def hold(conn: AsyncConnection) -> None:
    """Statements of the bakery wait from here on."""
    await conn.execute("SELECT pg_advisory_lock(%s)", [LOCK])


async def let_go(conn: AsyncConnection) -> None:
    await conn.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def together(batcher: Batcher[int, int], items: Sequence[int], sizes: Sequence[int] = ()) -> list[asyncio.Task[int]]:
    """Ask for all of them at once."""
    sizes = sizes or [0] * len(items)
    return [asyncio.create_task(ask(batcher, item, size)) for item, size in zip(items, sizes, strict=True)]


async def ask(batcher: Batcher[int, int], item: int, size: int = 0) -> int:
    return await batcher(item, size)


async def outcomes(asked: Sequence[Awaitable[int]]) -> list[int | type[BaseException]]:
    """The answer to each item, or the class of its error."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [type(answer) if isinstance(answer, BaseException) else answer for answer in answers]


async def test_what_waits_is_the_next_batch(bakery: Bakery, conn: AsyncConnection, database_url: str) -> None:
    """
    A lone caller waits for nobody; whoever comes meanwhile is the next batch, and each has its own answer.
    """
    async with Batcher("test", database_url, bakery.bake, Limits()) as batcher:
        await hold(conn)
        first = together(batcher, [100])
        await eventually(lambda: bakery.batches == [[100]])
        rest = together(batcher, [50, 25, 20])
        await asyncio.sleep(0)
        await let_go(conn)

        assert await outcomes([*first, *rest]) == [1, 2, 4, 5]
    assert bakery.batches == [[100], [50, 25, 20]]


@pytest.mark.parametrize(
    ("batch_size", "waiting", "wait_for"),
    [
        (1, 0, 0),  # a lone caller waits for nobody, and nobody for one
        (64, 0, 0),
        (1, 1, 2),
        (10, 10, 18),
        (1, 10, 0),  # nearly all are here
        (64, 10, 64),  # a batch has no more
        (64, 64, 0),
    ],
)
def test_for_how_many_a_batch_waits(batch_size: int, waiting: int, wait_for: int) -> None:
    """
    Where callers wait already, the next batch hopes for those who were in the last one.
    """
    assert rows_to_wait_for(batch_size, waiting, 64) == wait_for


async def test_who_was_answered_is_waited_for(
    bakery: Bakery, conn: AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A batch leaves as soon as as many wait as were there before, though it could have left with fewer.
    """
    monkeypatch.setattr("orders.database.batcher.gather_seconds", lambda elapsed_seconds: 60.0)
    async with Batcher("test", database_url, bakery.bake, Limits()) as batcher:
        await hold(conn)
        first = together(batcher, [100])
        await eventually(lambda: bakery.batches == [[100]])
        rest = together(batcher, [50, 25])
        await eventually(lambda: len(batcher._queue) == 2)
        await let_go(conn)
        assert await outcomes(first) == [1]
        await conn.execute("SELECT 1")  # the others are still there after a way to the server and back

        assert await outcomes([*together(batcher, [20]), *rest]) == [5, 2, 4]
    assert bakery.batches == [[100], [50, 25, 20]]


async def test_a_batch_that_is_full_by_its_size_waits_for_nobody(
    bakery: Bakery, conn: AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    More callers would not make it larger.
    """
    monkeypatch.setattr("orders.database.batcher.gather_seconds", lambda elapsed_seconds: 60.0)
    async with Batcher("test", database_url, bakery.bake, Limits(batch_bytes=100)) as batcher:
        await hold(conn)
        first = together(batcher, [100])
        await eventually(lambda: bakery.batches == [[100]])
        rest = together(batcher, [50, 25], [60, 60])
        await eventually(lambda: len(batcher._queue) == 2)
        await let_go(conn)

        async with asyncio.timeout(30):
            assert await outcomes([*first, rest[0]]) == [1, 2]
        assert await outcomes([*together(batcher, [20]), rest[1]]) == [5, 4]


@pytest.mark.parametrize(
    ("limits", "sizes", "batches"),
    [
        (Limits(batch_rows=2), [0] * 5, [[1, 2], [4, 5], [10]]),
        (Limits(batch_bytes=100), [40, 60, 1, 99, 1], [[1, 2], [4, 5], [10]]),
        # What is too large for a batch is one of its own.
        (Limits(batch_bytes=100), [1, 500, 1, 1, 1], [[1], [2], [4, 5, 10]]),
    ],
)
async def test_a_batch_is_bounded(
    bakery: Bakery, conn: AsyncConnection, database_url: str, limits: Limits, sizes: list[int], batches: list[list[int]]
) -> None:
    """
    A batch has so many rows and bytes at most; the rest follows in the order in which it came.
    """
    async with Batcher("test", database_url, bakery.bake, limits) as batcher:
        await hold(conn)
        first = together(batcher, [100])
        await eventually(lambda: bakery.batches == [[100]])
        rest = together(batcher, [1, 2, 4, 5, 10], sizes)
        await asyncio.sleep(0)
        await let_go(conn)

        assert await outcomes([*first, *rest]) == [1, 100, 50, 25, 20, 10]
    assert bakery.batches == [[100], *batches]


@pytest.mark.parametrize(("limits", "size"), [(Limits(queue_rows=3), 0), (Limits(queue_bytes=30), 10)])
async def test_a_full_queue_refuses(
    bakery: Bakery, conn: AsyncConnection, database_url: str, limits: Limits, size: int
) -> None:
    """
    Beyond so many rows or bytes, waiting or in flight, a caller is refused at once; afterwards there is room again.
    """
    async with Batcher("test", database_url, bakery.bake, limits) as batcher:
        await hold(conn)
        asked = together(batcher, [100, 50, 25, 20, 10], [size] * 5)
        await eventually(lambda: asked[3].done() and asked[4].done())
        assert not any(each.done() for each in asked[:3])
        await let_go(conn)

        assert await outcomes(asked) == [1, 2, 4, Overloaded, Overloaded]
        assert await outcomes(together(batcher, [100, 50, 25], [size] * 3)) == [1, 2, 4]


async def test_who_leaves_the_queue_is_not_written(bakery: Bakery, conn: AsyncConnection, database_url: str) -> None:
    """
    A caller who hangs up while waiting is left out, and one whose batch is in flight takes nobody along.
    """
    async with Batcher("test", database_url, bakery.bake, Limits()) as batcher:
        await hold(conn)
        flying = together(batcher, [100, 50])
        await eventually(lambda: sum(map(len, bakery.batches)) == 2)
        queued = together(batcher, [25, 20])
        await asyncio.sleep(0)
        flying[0].cancel()
        queued[0].cancel()
        await asyncio.sleep(0)
        await let_go(conn)

        assert await outcomes([*flying, *queued]) == [asyncio.CancelledError, 2, asyncio.CancelledError, 5]
    assert [25 in batch for batch in bakery.batches] == [False] * len(bakery.batches)


async def test_patience_ends(bakery: Bakery, conn: AsyncConnection, database_url: str) -> None:
    """
    A caller whose patience ends hears Unavailable, though the statement still runs; who comes afterwards is served.
    """
    async with Batcher("test", database_url, bakery.bake, Limits(patience=0.05, statement_seconds=60)) as batcher:
        await hold(conn)
        assert await outcomes(together(batcher, [100, 50])) == [Unavailable, Unavailable]
        await let_go(conn)

        async def is_served() -> bool:
            return await outcomes(together(batcher, [25])) == [4]

        await eventually(is_served)


async def test_one_patience_for_all_that_a_request_asks(bakery: Bakery, database_url: str) -> None:
    """
    A caller may bring an end of its own: what an earlier question has used up is gone.
    """
    async with Batcher("test", database_url, bakery.bake, Limits(patience=60)) as batcher:
        until = batcher.patience_ends()
        assert until is not None
        assert await batcher(100, until=until) == 1
        with pytest.raises(Unavailable):
            await batcher(50, until=until - 60)
    async with Batcher("test", database_url, bakery.bake, Limits()) as batcher:
        assert batcher.patience_ends() is None


async def test_one_guilty_row_among_many(bakery: Bakery, conn: AsyncConnection, database_url: str) -> None:
    """
    The rows of a batch that is refused are run one by one: the guilty ones are refused, the others are answered.
    """
    async with Batcher("test", database_url, bakery.bake, Limits()) as batcher:
        await hold(conn)
        asked = together(batcher, [100])
        await eventually(lambda: bakery.batches == [[100]])
        asked += together(batcher, [50, 0, 25, 0, 20])
        await asyncio.sleep(0)
        await let_go(conn)

        assert await outcomes(asked) == [1, 2, Refused, 4, Refused, 5]
        with pytest.raises(Refused, match="division by zero"):
            await batcher(0)
    assert bakery.batches == [[100], [50, 0, 25, 0, 20], [50], [0], [25], [0], [20], [0]]
    assert len(set(bakery.backends)) == 1, "the connection is as good as before"


async def test_who_left_is_not_run_alone(conn: AsyncConnection, database_url: str) -> None:
    """
    While the rows of a batch are run one by one, whoever leaves is left out.
    """
    seen: list[list[int]] = []
    leaving: list[asyncio.Task[int]] = []

    async def run(conn: AsyncConnection, batch: Sequence[int]) -> list[int]:
        seen.append(list(batch))
        if batch == [1]:
            leaving[0].cancel()
            await asyncio.sleep(0)
        await conn.execute("SELECT 1 / %b::bigint", [0 if len(batch) > 1 else 1])
        return list(batch)

    async with Batcher("test", database_url, run, Limits()) as batcher:
        asked = together(batcher, [1, 2, 3])
        leaving.append(asked[1])

        assert await outcomes(asked) == [1, asyncio.CancelledError, 3]
    assert seen == [[1, 2, 3], [1], [3]]


async def test_the_connection_is_lost_between_the_rows_of_a_batch(database_url: str) -> None:
    """
    Rows that were run one by one keep their answers; those that are left are run again on the next connection.
    """
    seen: list[list[int]] = []

    async def run(conn: AsyncConnection, batch: Sequence[int]) -> list[int]:
        seen.append(list(batch))
        if seen == [[1, 2, 3], [1], [2]]:
            await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        await conn.execute("SELECT 1 / %b::bigint", [0 if len(batch) > 1 else 1])
        return list(batch)

    async with Batcher("test", database_url, run, Limits()) as batcher:
        assert await outcomes(together(batcher, [1, 2, 3])) == [1, 2, 3]
    assert seen == [[1, 2, 3], [1], [2], [2, 3], [2], [3]]


async def test_nobodys_fault_is_run_again(conn: AsyncConnection, database_url: str) -> None:
    """
    A batch that meets a lock is run again on the same connection until it gets through; nobody is refused.
    """
    backends: list[int] = []

    async def run(conn: AsyncConnection, batch: Sequence[int]) -> list[int]:
        backends.append(conn.info.backend_pid)
        await conn.execute("SELECT n FROM rows FOR UPDATE NOWAIT")
        return list(batch)

    await conn.execute("CREATE TABLE rows AS SELECT 1 AS n")
    async with Batcher("test", database_url, run, Limits()) as batcher:
        async with conn.transaction():
            await conn.execute("SELECT n FROM rows FOR UPDATE")
            asked = together(batcher, [1, 2])
            await eventually(lambda: len(backends) >= 3)
        assert await outcomes(asked) == [1, 2]
    assert len(set(backends)) == 1


async def test_the_outcome_of_a_commit_is_unknown(conn: AsyncConnection, database_url: str) -> None:
    """
    A batch that was committed before its connection broke is run again with the same orders, and nothing is doubled.
    """
    runs: list[list[Placement]] = []

    async def place(conn: AsyncConnection, batch: Sequence[Placement]) -> list[Placed | KeyReused | Unavailable]:
        runs.append(list(batch))
        answers = await place_orders(conn, batch)
        if len(runs) == 1:
            await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return answers

    asked = [placement(), placement(key="a"), placement(key="a")]
    async with Batcher[Placement, Placed]("test", database_url, place, Limits()) as placing:
        bare, first, twin = await asyncio.gather(*(placing(each, each.size) for each in asked))

    assert runs == [asked, asked]
    assert bare == Placed(asked[0].order.order_id, asked[0].answer)
    assert (first.order_id, first.answer) == (twin.order_id, twin.answer)
    assert twin.order_id in {asked[1].order.order_id, asked[2].order.order_id}
    assert await counts(conn) == (2, 2, 1)


Mend = Callable[[AsyncConnection], Awaitable[None]]


async def make_one(conn: AsyncConnection) -> None:
    await conn.execute("CREATE TABLE IF NOT EXISTS part PARTITION OF parted FOR VALUES FROM (0) TO (9)")


async def make_none(conn: AsyncConnection) -> None:
    await conn.execute("SELECT no_such_column FROM parted")


@pytest.mark.parametrize(("mend", "backends"), [(make_one, 1), (make_none, 2), (None, 2)])
async def test_a_partition_is_missing(
    conn: AsyncConnection, database_url: str, mend: Mend | None, backends: int
) -> None:
    """
    The partition that is missing is made, and the batch run again; if that fails it is run again on a new connection.
    """
    seen: list[int] = []

    async def run(conn: AsyncConnection, batch: Sequence[int]) -> list[int]:
        seen.append(conn.info.backend_pid)
        await conn.execute("INSERT INTO parted VALUES (1)")
        return list(batch)

    await conn.execute("CREATE TABLE parted (n int) PARTITION BY RANGE (n)")
    async with Batcher("test", database_url, run, Limits(), mend=mend) as batcher:
        asked = together(batcher, [7])
        await eventually(lambda: len(seen) >= 2)
        await make_one(conn)
        assert await outcomes(asked) == [7]
    assert len(set(seen)) >= backends
    assert (len(set(seen)) == 1) == (mend is make_one)


@pytest.mark.parametrize(
    ("error_class", "batch_size", "max_rows", "expected"),
    [
        (ErrorClass.TOO_SLOW, 64, 64, 32),
        (ErrorClass.TOO_SLOW, 5, 64, 2),
        (ErrorClass.TOO_SLOW, 1, 64, 1),
        (None, 5, 16, 32),
        (None, 64, 64, 64),
        (None, 40, 40, 64),
        (ErrorClass.CONNECTION_LOST, 64, 64, 64),
        (ErrorClass.RUN_AGAIN, 3, 16, 16),
        (ErrorClass.PARTITION_MISSING, 3, 16, 16),
    ],
)
def test_how_large_the_next_run_may_be(
    error_class: ErrorClass | None, batch_size: int, max_rows: int, expected: int
) -> None:
    """
    What was too slow is halved, what got through may double, and nothing else changes it.
    """
    assert next_max_rows(error_class, batch_size, max_rows, 64) == expected


async def test_a_batch_that_is_too_much_for_its_deadline(database_url: str) -> None:
    """
    A server that is too slow for a whole batch still gets through with it, part by part; nobody is left out.
    """
    runs: list[list[int]] = []

    async def run(conn: AsyncConnection, batch: Sequence[int]) -> list[int]:
        runs.append(list(batch))
        await conn.execute("SELECT pg_sleep(%s)", [60 if len(batch) > 3 else 0])
        return list(batch)

    items = list(range(16))
    async with Batcher("test", database_url, run, Limits(statement_seconds=0.3)) as batcher:
        assert await outcomes(together(batcher, items)) == items
    assert [len(batch) for batch in runs[:3]] == [16, 8, 4]
    assert runs[3] == [0, 1], "those who came first are served first"


async def test_the_database_is_back(bakery: Bakery, database_url: str, wire: Wire) -> None:
    """
    After an outage of any length the attempt that was on its way when it ended, or the next one, gets through.
    """
    async with Batcher("test", wire.url(database_url), bakery.bake, Limits()) as batcher:
        assert await batcher(100) == 1
        wire.cut()
        asked = together(batcher, [50, 25])
        before = wire.accepted
        await eventually(lambda: wire.accepted >= before + 8)
        wire.mend()
        failed = wire.accepted

        assert await outcomes(asked) == [2, 4]
    assert wire.accepted <= failed + 1


async def test_a_statement_that_hangs(bakery: Bakery, database_url: str, wire: Wire) -> None:
    """
    A server that takes everything and answers nothing costs the connection, not the callers: the next one serves them.
    """
    limits = Limits(statement_seconds=0.1)
    async with Batcher("test", wire.url(database_url), bakery.bake, limits) as batcher:
        assert await batcher(100) == 1
        wire.silence()
        asked = together(batcher, [50, 25])
        await eventually(lambda: batcher.connections == 0)
        wire.reset()
        wire.resume()

        assert await outcomes(asked) == [2, 4]


async def test_the_end_finishes_what_waits(bakery: Bakery, conn: AsyncConnection, database_url: str) -> None:
    """
    At the end whatever was asked before is still written; whoever asks afterwards is refused.
    """
    async with Batcher("test", database_url, bakery.bake, Limits(batch_rows=2)) as batcher:
        await hold(conn)
        asked = together(batcher, [100, 50, 25, 20])
        await eventually(lambda: len(bakery.batches) == 1)
        ending = asyncio.create_task(batcher.__aexit__())
        await eventually(lambda: batcher.stopping)
        with pytest.raises(Overloaded):
            await batcher(10)
        assert not ending.done()
        await let_go(conn)

        assert await outcomes(asked) == [1, 2, 4, 5]
        await ending
    assert [len(batch) for batch in bakery.batches] == [2, 2]


async def test_the_end_without_a_database(bakery: Bakery, database_url: str, wire: Wire) -> None:
    """
    At the end nobody waits for a database that is not there: who is still waiting hears Unavailable.
    """
    async with Batcher("test", wire.url(database_url), bakery.bake, Limits(batch_rows=1)) as batcher:
        assert await batcher(100) == 1
        wire.cut()
        asked = together(batcher, [50, 25])
        before = wire.accepted
        await eventually(lambda: wire.accepted > before)

    assert await outcomes(asked) == [Unavailable, Unavailable]


async def test_a_bug_ends_the_process(database_url: str) -> None:
    """
    What no error of the database explains is a bug: the process stops as at SIGTERM, instead of serving on deaf, and
    nobody waits for the end of its grace: not those in the batch, nor those behind them, nor who comes later.
    """
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def run(conn: AsyncConnection, batch: Sequence[int]) -> list[int]:
        raise KeyError(batch[0])

    batcher = await Batcher("test", database_url, run, Limits(batch_rows=2)).__aenter__()
    asked = together(batcher, [1, 2, 3])
    try:
        await eventually(stopped.is_set)
        await eventually(lambda: all(task.done() for task in asked))
        assert await outcomes(asked) == [Unavailable, Unavailable, Unavailable]
        with pytest.raises(Overloaded):
            await batcher(4)
        with pytest.raises(KeyError):
            await batcher.__aexit__()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


class Statements:
    """Statements, the first of which takes as long as the test wants; their items are their answers."""

    def __init__(self) -> None:
        self.batches: list[Sequence[str]] = []
        self.end = asyncio.Event()

    async def run(self, conn: AsyncConnection, batch: Sequence[str]) -> Sequence[str]:
        self.batches.append(batch)
        if "first" in batch:
            await self.end.wait()
        return batch


async def test_a_quick_statement_is_waited_for(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What comes while a quick statement is in flight is one batch, though another writer is idle.
    """
    monkeypatch.setattr("orders.database.batcher.SLOW_SECONDS", 60)
    statements = Statements()
    async with Batcher("test", database_url, statements.run, Limits(writers=2, statement_seconds=60)) as ask:
        await eventually(lambda: ask.connections == 2)
        first = asyncio.create_task(ask("first"))
        await eventually(lambda: statements.batches)
        others = [asyncio.create_task(ask(f"{number}")) for number in range(10)]
        await asyncio.sleep(0)
        statements.end.set()
        answers = await asyncio.gather(first, *others)

    assert answers == ["first", *(f"{number}" for number in range(10))]
    assert [len(batch) for batch in statements.batches] == [1, 10]


async def test_a_full_batch_waits_for_nobody(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    While a quick statement is in flight another writer takes a batch that is full.
    """
    monkeypatch.setattr("orders.database.batcher.SLOW_SECONDS", 60)
    statements = Statements()
    limits = Limits(writers=2, batch_rows=5, statement_seconds=60)
    async with Batcher("test", database_url, statements.run, limits) as ask:
        await eventually(lambda: ask.connections == 2)
        first = asyncio.create_task(ask("first"))
        await eventually(lambda: statements.batches)
        await asyncio.gather(*(ask(f"{number}") for number in range(5)))
        statements.end.set()
        await first

    assert [len(batch) for batch in statements.batches] == [1, 5]


async def test_a_slow_statement_holds_up_nobody(database_url: str) -> None:
    """
    What waits behind a slow statement is taken by another writer, also what came while it still seemed quick.
    """
    statements = Statements()
    async with Batcher("test", database_url, statements.run, Limits(writers=2, statement_seconds=60)) as ask:
        await eventually(lambda: ask.connections == 2)
        first = asyncio.create_task(ask("first"))
        await eventually(lambda: statements.batches)
        for number in range(3):
            await ask(f"{number}")
        statements.end.set()
        await first

    assert [len(batch) for batch in statements.batches] == [1, 1, 1, 1]


async def test_what_is_busy_is_set_aside(database_url: str) -> None:
    """
    An item whose row is locked comes back after a pause, alone; its caller's patience bounds that, as does the end.
    """
    busy = {1, 2, 3}
    batches: list[list[int]] = []

    async def run(_conn: AsyncConnection, batch: Sequence[int]) -> list[int | Busy]:
        batches.append(list(batch))
        return [Busy(None) if item in busy else 10 * item for item in batch]

    async with Batcher[int, int]("test", database_url, run, Limits()) as batcher:
        assert await batcher(4) == 40
        freed, left = [asyncio.create_task(batcher(item)) for item in (1, 2)]
        with pytest.raises(Unavailable):
            await batcher(3, until=asyncio.get_running_loop().time() + 0.2)
        await eventually(lambda: sum(1 in batch for batch in batches) > 2)  # it was tried again
        busy.remove(1)
        assert await freed == 10
        assert not left.done()
        assert batcher.locked
    with pytest.raises(Unavailable):
        await left
    assert not batcher.locked
