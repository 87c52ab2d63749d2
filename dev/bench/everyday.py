"""What an order costs at the rates that shops have: `make bench ONLY=everyday`.

wrk places so many orders a second through nginx and three apis, whatever the answers take; a relay carries them, which
looks after its bindings as under `make up`, and a worker whose handler does nothing works them. An order's share of
everything is counted: the CPU time of each program, its wake-ups (voluntary context switches), transactions, and
requests to the management interface. Idle costs are part of it.

RATES=20,50 chooses the rates, SECONDS the time of each run, ROUNDS their number. With AGAINST=REVISION this tree and
that commit take turns, each with processes of its own that end before the other's start, on the same schema.

statements  each statement that an order at the lowest rate causes, and who sends it
20/s, ...   a rate
"""

import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import LiteralString, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg

from dev.bench import against, cpu, end_to_end, placing, statements
from dev.bench.end_to_end import Side, at, counts, last_event, legs, work_off
from dev.bench.measurement import Bench
from dev.bench.processes import wakeups
from dev.bench.record import Figures
from dev.sandbox import packages
from dev.sandbox.servers import Servers
from dev.sandbox.system import Counts, System
from tests import places

# Orders a second, and how many times the CPU time of the build of before an order may take.
RATES = {20.0: 0.25, 50.0: 0.25, 100.0: 0.3, 500.0: 0.5, 1000.0: 0.7}
SECONDS = 10
ROUNDS = 5
SETTLED_SECONDS = 1.5  # until the last mark is saved, and the statistics of all backends are there
GENERATOR = "wrk"

TRANSACTIONS: LiteralString = """
    SELECT (xact_commit + xact_rollback)::float8 FROM pg_stat_database WHERE datname = current_database()
"""


class RequestCounter:
    """A way to the management interface, in a thread of its own, that counts what is asked."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="management", daemon=True)
        self.url = ""
        self.requests = 0
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._connect, "127.0.0.1", 0), self._loop)
        self._listening = starting.result()
        port = self._listening.sockets[0].getsockname()[1]
        credentials = self._url.netloc.rpartition("@")[0]
        self.url = urlunsplit(self._url._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection(self._url.hostname, self._url.port)

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                self.requests += sink is back and data.count(b"GET /")
                sink.write(data)
            sink.write_eof()

        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(carry(reader, back), carry(there, writer))
        finally:
            writer.close()
            back.close()


@contextlib.contextmanager
def running(its: Servers, settings: Mapping[str, str]) -> Iterator[tuple[Side, RequestCounter]]:
    """The system as `make up` starts it, warm."""
    assert its.management_url is not None
    with (
        tempfile.TemporaryDirectory(prefix="bench-everyday-", ignore_cleanup_errors=True) as name,
        places.database(its) as database_url,
        places.vhost(its) as vhost,
        RequestCounter(its.management_url) as management,
    ):
        folder = Path(name)
        folder.chmod(0o711)
        with System(
            database_url, vhost, folder, Counts(apis=placing.APIS, relays=1, workers=1),
            settings={**end_to_end.NOTHING_TO_DO, **settings},
            management_url=management.url, users_url=its.management_url,
        ) as system:  # fmt: skip
            contender = placing.Contender("ours", f"{system.base_url}/orders", with_body=True)
            side = Side(contender, database_url, end_to_end.COUNT_OURS)
            end_to_end.warm(side)
            time.sleep(SETTLED_SECONDS)
            yield side, management


def measure(bench: Bench) -> None:
    """All of it."""
    packages.ensure(["nginx", "wrk"])
    seconds = int(os.environ.get("SECONDS", SECONDS))
    rounds = int(os.environ.get("ROUNDS", ROUNDS))
    rates = [float(rate) for rate in os.environ.get("RATES", "").split(",") if rate] or list(RATES)
    revision = os.environ.get("AGAINST")
    bench.settings(
        seconds=seconds, rounds=rounds, apis=placing.APIS, relays=1, workers=1, handler="does nothing", against=revision
    )
    its = bench.servers
    with tempfile.TemporaryDirectory(prefix="bench-before-", ignore_cleanup_errors=True) as name:
        sides = {"now": dict[str, str]()}
        if revision:
            sides["before"] = against.checked_out(revision, Path(name))
        for rate in rates:
            runs = {side: partial(an_order, its, settings, seconds, rate) for side, settings in sides.items()}
            bench.compare(f"{rate:g}/s", runs, rounds)
        with statements.counting(its) as counter:
            if counter is None:
                bench.note("SQL statements are not counted: the server is not ours, or has no pg_stat_statements")
            else:
                runs = {
                    side: partial(its_statements, its, settings, counter, seconds, rates[0])
                    for side, settings in sides.items()
                }
                bench.compare("statements", runs, 1)
    for rate in rates if revision else ():
        told = f"CPU time of an order at {rate:g}/s: now / before"
        target = f"at most {RATES[rate]:g}" if rate in RATES else ""
        bench.ratio(told, f"{rate:g}/s", "cpu_us", "now", "before", target)


def an_order(its: Servers, settings: Mapping[str, str], seconds: int, rate: float) -> Figures:
    """Place orders at this rate, work them, and divide."""
    with running(its, settings) as (side, management), psycopg.connect(side.database_url, autocommit=True) as conn:
        before, since = counts(conn, side)[0], last_event(conn)
        transactions, asked, woken = at(conn, TRANSACTIONS), management.requests, cpu.by_program(wakeups)
        clock = cpu.Clock()
        placed = placing.drive(side.contender, seconds, rate)
        time.sleep(SETTLED_SECONDS)
        spent, woken_now, asked_now = clock.spent(), cpu.by_program(wakeups), management.requests
        transactions_now = at(conn, TRANSACTIONS)
        work_off(conn, side)
        after, done = counts(conn, side)
        orders = after - before
        each = {name: spent / orders * 1e6 for name, spent in spent.items() if name != GENERATOR}
        return {
            "cpu_us": sum(each.values()),
            **{f"cpu_us_{name}": us for name, us in each.items() if us >= 1},
            "transactions": (transactions_now - transactions) / orders,
            "management_requests": (asked_now - asked) / orders,
            **{
                f"wakeups_{name}": (woken_now[name] - woken.get(name, 0.0)) / orders
                for name, us in each.items()
                if us >= 1 and name in woken_now
            },
            "per_second": placed["per_second"],
            "accept_p50_ms": placed["p50_ms"],
            "accept_p99_ms": placed["p99_ms"],
            **legs(conn, since),
            "left_undone": after - done,
        }


def its_statements(
    its: Servers, settings: Mapping[str, str], counter: statements.Counter, seconds: int, rate: float
) -> Figures:
    """Place orders at this rate, work them, and divide what each kind of process has sent."""
    with running(its, settings) as (side, _), psycopg.connect(side.database_url, autocommit=True) as conn:
        counter.open(conn)
        placed, before = counts(conn, side)[0], counter.read_each(conn)
        placing.drive(side.contender, seconds, rate)
        time.sleep(SETTLED_SECONDS)
        after = counter.read_each(conn)
        placed = counts(conn, side)[0] - placed
    each = {name: (calls - before.get(name, 0.0)) / placed for name, calls in after.items()}
    return {"statements": sum(each.values()), **{name: calls for name, calls in each.items() if calls >= 0.01}}
