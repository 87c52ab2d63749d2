"""Orders from the client to done, with a handler that does nothing: `make bench ONLY=end_to_end`.

highest     wrk places as fast as it can for some seconds, and all of it is worked to the end: orders done a second,
            from the first request to the last `done`; ours and the tutorial's design
sustained   as much as can be worked while it comes in, for a minute in the long form: the backlog has to stay bounded
latency     one order now and then, and 100, 500 and 1,000 a second: request to 201, commit to confirm, placed to done;
            of the tutorial's design, which keeps no times, and only reaches the lower rates: request to answer
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import LiteralString

import msgspec
import psycopg

from dev.bench import cpu, placing
from dev.bench.measurement import Bench
from dev.bench.record import Figures, Series
from dev.sandbox import packages
from dev.sandbox.servers import Servers
from dev.sandbox.system import Counts, System
from tests import places

NOTHING_TO_DO = {"ORDERS_HANDLER": "orders.handlers:do_nothing"}
PATIENCE_SECONDS = 300.0
# Of the highest rate, one after the other until one can be sustained.
FINE_STEPS = (1.1, 1.0, 0.9, 0.8, 0.7)
COARSE_STEPS = (1.0, 0.8, 0.6)
REACHED = 0.97  # of what was asked for, or it was not that rate
RATES = (2.0, 100.0, 500.0, 1000.0)
THEIR_RATES = (2.0, 100.0)

COUNT_OURS: LiteralString = "SELECT count(*), count(*) FILTER (WHERE status = 'done') FROM orders"
COUNT_THEIRS: LiteralString = "SELECT count(*), count(*) FILTER (WHERE status = 'done') FROM baseline_orders"
# To count is to read a whole table. Ours fills faster, and keeps the time of its end: it is looked at more seldom.
LOOK_SECONDS, LOOK_SECONDS_WITHOUT_TIMES = 1.0, 0.2
LAST_DONE: LiteralString = "SELECT extract(epoch FROM max(finished_at))::float8 FROM orders"
NOW: LiteralString = "SELECT extract(epoch FROM clock_timestamp())::float8"
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
    keeps_times: bool = True


@contextlib.contextmanager
def ours(its: Servers, folder: Path, *, settings: Mapping[str, str] | None = None) -> Iterator[Side]:
    """Three apis, a relay and a worker, as `make up` starts them."""
    folder.mkdir()
    counts = Counts(apis=placing.APIS, relays=1, workers=1)
    with (
        places.database(its) as database_url,
        places.vhost(its) as vhost,
        System(
            database_url,
            vhost,
            folder,
            counts,
            settings={**NOTHING_TO_DO, **(settings or {})},
            users_url=its.management_url,
        ) as system,
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
    """Wait until all orders are done, or patience ends; return when that was, by the database's clock in seconds."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        placed, done = counts(conn, side)
        if placed == done:
            return at(conn, LAST_DONE if side.keeps_times else NOW)
        time.sleep(LOOK_SECONDS if side.keeps_times else LOOK_SECONDS_WITHOUT_TIMES)
    return at(conn, NOW)


def at(conn: psycopg.Connection, query: LiteralString) -> float:
    """Return a time by the database's clock, in seconds."""
    row = conn.execute(query).fetchone()
    assert row is not None
    return float(row[0])


def warm(side: Side) -> None:
    """Have every process do its part some thousand times, and nothing left to do."""
    placing.drive(side.contender, 2)
    with psycopg.connect(side.database_url, autocommit=True) as conn:
        work_off(conn, side)


def all_of_it(side: Side, seconds: int) -> Figures:
    """Place as fast as it goes, and wait until the last order is done."""
    with psycopg.connect(side.database_url, autocommit=True) as conn, Watch(side) as watch:
        before, _ = counts(conn, side)
        clock, began = cpu.Clock(), at(conn, NOW)
        placed = placing.drive(side.contender, seconds)
        ended = work_off(conn, side)
        spent = clock.spent()
        after, done = counts(conn, side)
        each = {name: seconds / max(1, done - before) * 1e6 for name, seconds in spent.items()}
        return {
            "done_per_second": (done - before) / (ended - began),
            "placed_per_second": placed["per_second"],
            "accept_p50_ms": placed["p50_ms"],
            "accept_p99_ms": placed["p99_ms"],
            "left_undone": after - done,
            **{f"cpu_us_{name}": spent for name, spent in each.items() if spent >= 1},
            "cpu_us": sum(each.values()),
            "backlog": watch.backlog,
        }


def at_rate(side: Side, seconds: int, rate: float) -> Figures:
    """Place so many a second; the backlog at the end tells whether they are worked as they come."""
    with psycopg.connect(side.database_url, autocommit=True) as conn, Watch(side) as watch:
        before, _ = counts(conn, side)
        since = last_event(conn) if side.keeps_times else 0
        placed = placing.drive(side.contender, seconds, rate)
        after, done = counts(conn, side)
        work_off(conn, side)
        waited = legs(conn, since) if side.keeps_times else {}
    return {
        "asked_per_second": rate,
        "placed_per_second": placed["per_second"],
        "done_per_second": (done - before) / seconds,
        "behind_seconds": (after - done) / rate,
        "accept_p50_ms": placed["p50_ms"],
        "accept_p99_ms": placed["p99_ms"],
        **waited,
        "backlog": watch.backlog,
    }


def last_event(conn: psycopg.Connection) -> int:
    """Return the id of the last event that was written."""
    row = conn.execute("SELECT last_value FROM outbox_id_seq").fetchone()
    assert row is not None
    return int(row[0])


def legs(conn: psycopg.Connection, since: int) -> Figures:
    """Return how long the orders placed since then took to be sent, and to be done."""
    row = conn.execute(LEGS, (since,)).fetchone()
    assert row is not None
    done, sent = row
    return {"sent_p50_ms": sent[0], "sent_p99_ms": sent[1], "done_p50_ms": done[0], "done_p99_ms": done[1]}


def bounded(backlog: Series, rate: float) -> bool:
    """Say whether no more than a second's orders were waiting at any look in the last third of a run."""
    if not backlog:
        return False
    since = backlog[-1][0] * 2 / 3
    return all(waiting <= rate for when, waiting in backlog if when >= since)


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
            warm(mine)
            bench.compare("latency", _at_rates(mine, seconds, RATES), 1)
        with baseline(its, folder / "baseline-latency") as theirs:
            warm(theirs)
            bench.compare("latency of the baseline", _at_rates(theirs, seconds, THEIR_RATES), 1)
        _highest(bench, its, folder, seconds)
        _sustained(bench, its, folder)
    bench.ratio("done: ours / baseline", "highest", "done_per_second", "ours", "baseline", "at least 10")


def _at_rates(side: Side, seconds: int, rates: tuple[float, ...]) -> dict[str, Callable[[], Figures]]:
    return {f"{rate:g}/s": partial(at_rate, side, seconds, rate) for rate in rates}


def _highest(bench: Bench, its: Servers, folder: Path, seconds: int) -> None:
    with ours(its, folder / "ours-highest") as mine, baseline(its, folder / "baseline") as theirs:
        sides: dict[str, Callable[[], Figures]] = {
            "ours": partial(all_of_it, mine, seconds),
            "baseline": partial(all_of_it, theirs, seconds),
        }
        bench.compare("highest", sides, 3 if bench.full else 2)


def _sustained(bench: Bench, its: Servers, folder: Path) -> None:
    """Take the rate back from the highest until what is placed is also worked: at most a second's orders wait."""
    contenders: list[tuple[str, tuple[float, ...], Callable[[Servers, Path], contextlib.AbstractContextManager[Side]]]]
    contenders = [("ours", FINE_STEPS if bench.full else COARSE_STEPS, ours)]
    if bench.full:
        contenders.append(("baseline", COARSE_STEPS, baseline))
    for name, steps, opened in contenders:
        highest = bench.median("highest", name, "done_per_second")
        for step in steps:
            rate = round(highest * step, -1)
            with opened(its, folder / f"{name}-sustained-{step}") as side:
                told = f"{name}, {rate:,.0f}/s"
                bench.compare("sustained", {told: partial(sustain, side, 60 if bench.full else 12, rate)}, 1)
            if bench.median("sustained", told, "bounded"):
                bench.note(
                    f"sustained with the backlog bounded: {told}" + ", the most that was tried" * (step == steps[0])
                )
                break
        else:
            bench.note(f"nothing down to {told} could be sustained")


def sustain(side: Side, seconds: int, rate: float) -> Figures:
    """Place at this rate, and judge whether it was worked as it came."""
    warm(side)
    figures = at_rate(side, seconds, rate)
    placed, backlog = figures["placed_per_second"], figures["backlog"]
    assert isinstance(placed, float)
    assert isinstance(backlog, list)
    during = [(when, waiting) for when, waiting in backlog if when <= seconds]
    return {**figures, "bounded": float(placed >= REACHED * rate and bounded(during, rate))}


@contextlib.contextmanager
def baseline(its: Servers, folder: Path) -> Iterator[Side]:
    """The tutorial's design with its consumer; its work takes no time either."""
    with placing.baseline(its, folder, consumers=1, work_seconds="0") as contender:
        yield Side(contender, contender.database_url, COUNT_THEIRS, keeps_times=False)
