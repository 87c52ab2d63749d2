"""Orders from the client to done, with a handler that does nothing: `make bench ONLY=end_to_end`.

highest     wrk places as fast as it can for some seconds, and all of it is worked to the end: orders done a second,
            from the first request to the last `done`; ours and the tutorial's design
sustained   as much as can be worked while it comes in, for a minute in the long form: the backlog has to stay bounded
latency     one order now and then, and 100, 500 and 1,000 a second: request to 201, commit to confirm, placed to done
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import LiteralString

import msgspec
import psycopg

from bench import cpu, placing
from bench.measurement import Bench
from bench.record import Figures, Series
from sandbox import packages
from sandbox.servers import Servers
from sandbox.system import Counts, System
from tests import places

NOTHING_TO_DO = {"ORDERS_HANDLER": "orders.handlers:do_nothing"}
PATIENCE_SECONDS = 300.0
STEP = 0.8  # of the highest rate: where the search for what can be sustained begins

COUNT_OURS: LiteralString = "SELECT count(*), count(*) FILTER (WHERE status = 'done') FROM orders"
COUNT_THEIRS: LiteralString = "SELECT count(*), count(*) FILTER (WHERE status = 'done') FROM baseline_orders"
# Both by the database's clock; the outbox row's own time is that of the commit, but for the flush.
LEGS: LiteralString = """
    WITH mine AS (
        SELECT (extract(epoch FROM o.finished_at - e.created_at) * 1000)::float8 AS done,
               (extract(epoch FROM e.settled_at - e.created_at) * 1000)::float8 AS sent
        FROM orders o JOIN outbox e ON e.key = o.order_id::text AND e.routing_key = 'order.placed'
        WHERE e.id > %s AND o.status = 'done'
    )
    SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY done),
           percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY sent)
    FROM mine
"""


class Side(msgspec.Struct, frozen=True):
    """A system that takes orders and works them."""

    contender: placing.Contender
    database_url: str
    count: LiteralString


@contextlib.contextmanager
def ours(its: Servers, folder: Path) -> Iterator[Side]:
    """Three apis, a relay and a worker, as `make up` starts them."""
    folder.mkdir()
    counts = Counts(apis=placing.APIS, relays=1, workers=1)
    with (
        places.database(its) as database_url,
        places.vhost(its) as vhost,
        System(database_url, vhost, folder, counts, settings=NOTHING_TO_DO) as system,
    ):
        yield Side(placing.Contender("ours", f"{system.base_url}/orders", with_body=True), database_url, COUNT_OURS)


class Watch:
    """Counts, from a thread of its own, how many orders were placed and how many are done."""

    def __init__(self, side: Side, every_seconds: float = 1.0) -> None:
        self._side = side
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.backlog: Series = []

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        began = time.monotonic()
        with psycopg.connect(self._side.database_url, autocommit=True) as conn:
            while not self._stop.wait(self._every_seconds):
                placed, done = counts(conn, self._side)
                self.backlog.append((round(time.monotonic() - began, 2), float(placed - done)))


def counts(conn: psycopg.Connection, side: Side) -> tuple[int, int]:
    """Return how many orders there are, and how many of them are done."""
    row = conn.execute(side.count).fetchone()
    assert row is not None
    return row[0], row[1]


def work_off(conn: psycopg.Connection, side: Side) -> float:
    """Return when all orders are done."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        placed, done = counts(conn, side)
        if placed == done:
            break
        time.sleep(0.2)
    return time.monotonic()


def all_of_it(side: Side, seconds: int) -> Figures:
    """Place as fast as it goes, and wait until the last order is done."""
    with psycopg.connect(side.database_url, autocommit=True) as conn, Watch(side) as watch:
        before, _ = counts(conn, side)
        clock, began = cpu.Clock(), time.monotonic()
        placed = placing.drive(side.contender, seconds)
        ended = work_off(conn, side)
        spent = clock.spent()
        after, done = counts(conn, side)
        return {
            "done_per_second": (done - before) / (ended - began),
            "placed_per_second": placed["per_second"],
            "accept_p50_ms": placed["p50_ms"],
            "accept_p99_ms": placed["p99_ms"],
            "left_undone": after - done,
            **{f"cpu_us_{name}": each / (done - before) * 1e6 for name, each in spent.items()},
            "cpu_us": sum(spent.values()) / (done - before) * 1e6,
            "backlog": watch.backlog,
        }


def at_rate(side: Side, seconds: int, rate: float) -> Figures:
    """Place so many a second; the backlog at the end tells whether they are worked as they come."""
    with psycopg.connect(side.database_url, autocommit=True) as conn, Watch(side) as watch:
        before, _ = counts(conn, side)
        row = conn.execute("SELECT last_value FROM outbox_id_seq").fetchone()
        assert row is not None
        placed = placing.drive(side.contender, seconds, rate)
        after, done = counts(conn, side)
        work_off(conn, side)
        legs = conn.execute(LEGS, row).fetchone()
        assert legs is not None
        worked, sent = legs
    return {
        "asked_per_second": rate,
        "placed_per_second": placed["per_second"],
        "done_per_second": (done - before) / seconds,
        "behind_seconds": (after - done) / rate,
        "accept_p50_ms": placed["p50_ms"],
        "accept_p99_ms": placed["p99_ms"],
        "sent_p50_ms": sent[0],
        "sent_p99_ms": sent[1],
        "done_p50_ms": worked[0],
        "done_p99_ms": worked[1],
        "backlog": watch.backlog,
    }


def measure(bench: Bench) -> None:
    """All of it."""
    packages.ensure(["nginx", "wrk"])
    seconds = 20 if bench.full else 6
    bench.settings(seconds=seconds, connections=placing.CONNECTIONS, apis=placing.APIS, handler="does nothing")
    its = bench.servers
    with tempfile.TemporaryDirectory(prefix="bench-end-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with ours(its, folder / "ours") as mine:
            placing.drive(mine.contender, 2)  # warm
            with psycopg.connect(mine.database_url, autocommit=True) as conn:
                work_off(conn, mine)
            rates = (2.0, 100.0, 500.0, 1000.0)
            bench.compare("latency", {f"{rate:g}/s": partial(at_rate, mine, seconds, rate) for rate in rates}, 1)
        _highest(bench, its, folder, seconds)
        _sustained(bench, its, folder)
    bench.ratio("done: ours / baseline", "highest", "done_per_second", "ours", "baseline", "at least 10")


def _highest(bench: Bench, its: Servers, folder: Path, seconds: int) -> None:
    with ours(its, folder / "ours-highest") as mine, baseline(its, folder / "baseline") as theirs:
        sides: dict[str, Callable[[], Figures]] = {
            "ours": partial(all_of_it, mine, seconds),
            "baseline": partial(all_of_it, theirs, seconds),
        }
        bench.compare("highest", sides, 3 if bench.full else 2)


def _sustained(bench: Bench, its: Servers, folder: Path) -> None:
    """Take the rate back until what is placed is also worked: at most a second behind at the end."""
    highest = bench.median("highest", "ours", "done_per_second")
    seconds = 60 if bench.full else 15
    for step in range(3):
        rate = round(highest * STEP * 0.85**step, -1)
        with ours(its, folder / f"ours-sustained-{step}") as mine:
            side = f"{rate:,.0f}/s"
            bench.compare("sustained", {side: partial(at_rate, mine, seconds, rate)}, 1)
        if bench.median("sustained", side, "behind_seconds") < 1:
            bench.note(f"sustained for {seconds} s with the backlog bounded: {side}")
            return
    bench.note(f"nothing down to {side} could be sustained")


@contextlib.contextmanager
def baseline(its: Servers, folder: Path) -> Iterator[Side]:
    """The tutorial's design with its consumer; its work takes no time either."""
    with placing.baseline(its, folder, consumers=1, work_seconds="0") as contender:
        yield Side(contender, contender.database_url, COUNT_THEIRS)
