"""What the system takes for itself: `make bench ONLY=footprint`.

start     from a process's start until it is ready, for each, with the servers there
idle      connections, memory, and CPU of each process, with nothing to do
orders    what an order costs: WAL bytes, transactions, and the CPU time of each program, at a steady 500 a second
          and, in a run of its own, the SQL statements that each kind of process sends
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import LiteralString

import psycopg

from dev.bench import cpu, placing, statements
from dev.bench.end_to_end import COUNT_OURS, NOTHING_TO_DO, Side, counts, ours, warm, work_off
from dev.bench.measurement import Bench
from dev.bench.processes import family, memory_mib
from dev.bench.record import Figures
from dev.sandbox import packages
from dev.sandbox.servers import Servers
from dev.sandbox.system import Counts, System
from tests import places

OURS = ("orders.app", "relay", "orders.worker", "nginx")
RATE = 500.0

CONNECTIONS: LiteralString = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
WRITTEN: LiteralString = """
    SELECT (pg_current_wal_lsn() - '0/0')::float8, (xact_commit + xact_rollback)::float8
    FROM pg_stat_database WHERE datname = current_database()
"""


def measure(bench: Bench) -> None:
    """All of it."""
    packages.ensure(["nginx", "wrk"])
    its = bench.servers
    bench.settings(apis=placing.APIS, relays=1, workers=1, orders_per_second=RATE, handler="does nothing")
    with tempfile.TemporaryDirectory(prefix="bench-foot-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        bench.compare("start", {"seconds until ready": partial(start, its, folder)}, 3)
        with ours(its, folder / "ours") as mine:
            warm(mine)  # an api that was never asked has not made its statements yet
            time.sleep(5)
            bench.compare("idle", {"ours": partial(idle, mine, 30 if bench.full else 10)}, 2)
            bench.compare("orders", {"ours": partial(an_order, mine, 20 if bench.full else 8)}, 2)
        with statements.counting(its) as counter:
            if counter is None:
                bench.note("SQL statements are not counted: the server is not ours, or has no pg_stat_statements")
                return
            bench.compare("statements", {"ours": partial(its_statements, its, folder, counter, bench.full)}, 1)


def its_statements(its: Servers, folder: Path, counter: statements.Counter, full: bool) -> Figures:
    """Place orders at a steady rate, work them, and divide what each kind of process has sent."""
    where = folder / "statements"
    where.mkdir()
    counts_of = Counts(apis=placing.APIS, relays=1, workers=1)
    with (
        places.database(its) as database,
        places.vhost(its) as vhost,
        psycopg.connect(database, autocommit=True) as conn,
        System(
            database, vhost, where, counts_of, settings=NOTHING_TO_DO, users_url=its.management_url,
        ) as system,
    ):  # fmt: skip
        counter.open(conn)
        side = Side(placing.Contender("ours", f"{system.base_url}/orders", with_body=True), database, COUNT_OURS)
        warm(side)
        placed, before = counts(conn, side)[0], counter.read(conn)
        placing.drive(side.contender, 20 if full else 8, RATE)
        work_off(conn, side)
        after = counter.read(conn)
        placed = counts(conn, side)[0] - placed
    sent = {role: (after[role] - before[role]) / placed for role in after}
    return {"statements": sum(sent.values()), **{f"statements_of_{role}": each for role, each in sent.items()}}


def start(its: Servers, folder: Path) -> Figures:
    """Start each process by itself, the others standing."""
    where = folder / f"start-{time.monotonic_ns()}"
    where.mkdir()
    figures = {}
    with places.database(its) as database, places.vhost(its) as vhost:
        system = System(
            database, vhost, where, Counts(apis=0, relays=0, workers=0), settings=NOTHING_TO_DO,
            users_url=its.management_url,
        )  # fmt: skip
        try:
            began = time.monotonic()
            system.migrate()
            figures["migrate"] = time.monotonic() - began
            for name, more in (
                ("api", Counts(apis=1, relays=0, workers=0)),
                ("relay", Counts(apis=1, relays=1, workers=0)),
                ("worker", Counts(apis=1, relays=1, workers=1)),
            ):
                began = time.monotonic()
                system.scale(more)
                system.wait_ready()
                figures[name] = time.monotonic() - began
        finally:
            system.close()
    return figures


def idle(side: Side, seconds: int) -> Figures:
    """Watch it do nothing."""
    clock, began = cpu.Clock(), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    spent = clock.spent()
    with psycopg.connect(side.database_url, autocommit=True) as conn:
        row = conn.execute(CONNECTIONS).fetchone()
    assert row is not None
    taken = memory()
    return {
        "database_connections": float(row[0]),
        **{f"cpu_percent_{name}": spent.get(name, 0.0) / passed * 100 for name in (*OURS, "postgres", "beam.smp")},
        "cpu_percent_of_all_ours": sum(spent.get(name, 0.0) for name in OURS) / passed * 100,
        **{f"memory_mib_{name}": taken.get(name, 0.0) for name in (*OURS, "postgres", "beam.smp")},
    }


def memory() -> dict[str, float]:
    """Return by program what the processes below this one have for themselves, in MiB."""
    total: dict[str, float] = {}
    for pid in family(os.getpid())[1:]:
        name = cpu.name_of(pid)
        total[name] = total.get(name, 0.0) + memory_mib(pid)
    return total


def an_order(side: Side, seconds: int) -> Figures:
    """Place orders at a steady rate, work them, and divide."""
    with psycopg.connect(side.database_url, autocommit=True) as conn:
        before, _ = counts(conn, side)
        written = conn.execute(WRITTEN).fetchone()
        clock = cpu.Clock()
        placing.drive(side.contender, seconds, RATE)
        work_off(conn, side)
        time.sleep(1.5)  # the last marks, and the statistics of all backends
        spent = clock.spent()
        after = conn.execute(WRITTEN).fetchone()
        placed = counts(conn, side)[0] - before
    assert written is not None
    assert after is not None
    return {
        "wal_bytes": (after[0] - written[0]) / placed,
        "transactions": (after[1] - written[1]) / placed,
        **{f"cpu_us_{name}": spent.get(name, 0.0) / placed * 1e6 for name in (*OURS, "postgres", "beam.smp")},
    }
