"""Orders placed a second through nginx and three apis: `make bench ONLY=placing`.

Three contenders, one after the other, again and again, with wrk and 100 connections: the tutorial's design (baseline),
ours, and our stack with a handler that does nothing. Relay and worker are stopped; ours and the baseline run again with
them. Then ours at the highest rate that the baseline reached, for what a client waits there; and, in the long form, the
tutorial's own load: 100 requests a second more each second, until they are no longer answered.

Then, with a relay at work, what must not change ours: an outbox full of sent rows, and a transaction elsewhere that
holds the xmin horizon.

Beside each rate stands the CPU time of an order in each program. On a machine where all of them share the cores, that
is the limit: cores / CPU time.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from string import Template
from typing import LiteralString

import msgspec
import psycopg

from dev.bench import cpu, environment, outbox
from dev.bench.measurement import Bench
from dev.bench.record import Figures
from dev.sandbox import nginx, packages
from dev.sandbox.ports import free_port
from dev.sandbox.process import ROOT, Process, Spec, wait_until, write_atomically
from dev.sandbox.servers import Servers
from dev.sandbox.system import Counts, System
from tests import places

APIS = 3
CONNECTIONS = 100
THREADS = 2  # of wrk
MOST_ASKED = 20_000  # requests a second
PENDING: LiteralString = "SELECT FROM outbox WHERE state = 'pending' LIMIT 1"


class Contender(msgspec.Struct, frozen=True):
    """Something that places orders behind a URL."""

    name: str
    url: str
    with_body: bool
    database_url: str = ""
    lines: int = 0  # of a batch; 0: single placements
    connections: int = CONNECTIONS
    paths: tuple[str, ...] = ()  # it is sent GETs of these, one after the other


def drive(contender: Contender, seconds: int, rate: float | None = None) -> Figures:
    """Let wrk place orders for some seconds: as many as it can, or so many a second."""
    pause = 0.0 if rate is None else THREADS / rate * 1e3
    body = "with-body" if contender.with_body else "without-body"
    if contender.paths:
        body = "get"
    elif contender.lines:
        body = f"batch-{contender.lines}"
    clock = cpu.Clock()
    done = subprocess.run(
        [
            "wrk", f"-t{min(THREADS, contender.connections)}", f"-c{contender.connections}", f"-d{seconds}s",
            "-s", str(ROOT / "dev" / "bench" / "wrk.lua"), contender.url, "--", body, str(pause), *contender.paths,
        ],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    spent = clock.spent()
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    good, bad, errors, microseconds, p50, p99 = map(int, line.split()[1:])
    good *= contender.lines or 1
    each = {name: seconds / max(1, good) * 1e6 for name, seconds in spent.items()}
    return {
        "per_second": good / microseconds * 1e6,
        "p50_ms": p50 / 1e3,
        "p99_ms": p99 / 1e3,
        "refused": bad,
        "errors": errors,
        "cpu_us": sum(each.values()),
        **{f"cpu_us_{name}": spent for name, spent in each.items() if spent >= 1},
        "generator_cpu": spent.get("wrk", 0.0) / microseconds * 1e6,
    }


@contextlib.contextmanager
def ours(
    its: Servers,
    folder: Path,
    *,
    relays: int = 0,
    workers: int = 0,
    template: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Contender]:
    """The system as `make up` starts it, on a new database or a copy of the template."""
    folder.mkdir()
    counts = Counts(apis=APIS, relays=relays, workers=workers)
    settings = {"WORK_MIN_SECONDS": "0.01", "WORK_MAX_SECONDS": "0.01", **(settings or {})}
    with (
        places.database(its, template) as database,
        places.vhost(its) as vhost,
        System(database, vhost, folder, counts, settings=settings, users_url=its.management_url) as system,
    ):
        yield Contender("ours", f"{system.base_url}/orders", with_body=True, database_url=database)


@contextlib.contextmanager
def nothing(folder: Path) -> Iterator[Contender]:
    """Our uvicorn, Litestar and nginx, with a handler that does nothing."""
    folder.mkdir()
    ports = [free_port() for _ in range(APIS)]
    port = free_port()
    specs = [
        Spec(
            name=f"nothing-{number}",
            command=(sys.executable, "-m", "dev.bench.nothing"),
            environ=os.environ | {"DATABASE_URL": "postgresql://nowhere", "ORDERS_PORT": str(each)},
            ready_url=f"http://127.0.0.1:{each}/health/ready",
        )
        for number, each in enumerate(ports, 1)
    ]
    main_file = nginx.render(folder / "nginx", port, ports, folder / "access.log", os.environ)
    with running(specs, folder, port, main_file):
        yield Contender("do-nothing handler", f"http://127.0.0.1:{port}/orders", with_body=True)


@contextlib.contextmanager
def baseline(its: Servers, folder: Path, *, consumers: int = 0, work_seconds: str = "0.01") -> Iterator[Contender]:
    """The tutorial's design."""
    folder.mkdir()
    python = str(environment.ensure())
    ports = [free_port() for _ in range(APIS)]
    port = free_port()
    with places.database(its) as database, places.vhost(its) as vhost:
        urls = {"DATABASE_URL": database, "AMQP_URL": vhost, "PYTHONPATH": str(ROOT)}
        environ = os.environ | urls | {"WORK_MIN_SECONDS": work_seconds, "WORK_MAX_SECONDS": work_seconds}
        specs = [
            Spec(
                name=f"baseline-{number}",
                command=(python, "-m", "uvicorn", "dev.bench.baseline.api:app", "--port", str(each), "--no-access-log"),
                environ=environ,
                ready_url=f"http://127.0.0.1:{each}/health",
            )
            for number, each in enumerate(ports, 1)
        ]
        specs += [
            Spec(name="baseline-consumer", command=(python, "-m", "dev.bench.baseline.consumer"), environ=environ)
            for _ in range(consumers)
        ]
        upstream = " ".join(f"server 127.0.0.1:{each};" for each in ports)
        text = Template((ROOT / "dev" / "bench" / "baseline" / "nginx.conf").read_text()).safe_substitute(
            FOLDER=str(folder), PORT=str(port), UPSTREAM_SERVERS=upstream
        )
        write_atomically(folder / "nginx.conf", text)
        with running(specs, folder, port, folder / "nginx.conf"):
            yield Contender("baseline", f"http://127.0.0.1:{port}/order/place", with_body=False, database_url=database)


@contextlib.contextmanager
def running(specs: list[Spec], folder: Path, port: int, nginx_file: Path) -> Iterator[None]:
    """Processes behind an nginx, all of them ready."""
    program = packages.find("nginx")
    assert program is not None
    front = Spec(
        name=f"nginx-{secrets.token_hex(2)}",
        command=(program, "-c", str(nginx_file), "-e", "stderr"),
        environ=os.environ,
        stop_signal=nginx.STOP_SIGNAL,
        ready_url=f"http://127.0.0.1:{port}/health",
    )
    processes = [Process(spec, folder, restart=True) for spec in (*specs, front)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            wait_until(process.is_ready, 30, lambda process=process: f"{process.name}: {process.last_line()}")  # type: ignore[misc]
        yield
    finally:
        for process in reversed(processes):
            process.stop()


def measure(bench: Bench) -> None:
    """Measure, and compare."""
    packages.ensure(["nginx", "wrk"])
    seconds = int(os.environ.get("SECONDS", "8" if bench.full else "3"))
    rounds = int(os.environ.get("ROUNDS", "9" if bench.full else "6"))
    bench.settings(seconds=seconds, rounds=rounds, connections=CONNECTIONS, apis=APIS)
    its = bench.servers
    with tempfile.TemporaryDirectory(prefix="placing-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with (
            baseline(its, folder / "baseline") as theirs,
            ours(its, folder / "ours") as mine,
            nothing(folder / "nothing") as least,
        ):
            contenders = (theirs, mine, least)
            for contender in contenders:
                drive(contender, 2)  # warm
            bench.compare("placing", {each.name: partial(drive, each, seconds) for each in contenders}, rounds)
            at_most = bench.median("placing", "baseline", "per_second")
            bench.compare(
                "at the baseline's highest rate", {"ours": lambda: drive(mine, seconds, at_most)}, max(2, rounds // 2)
            )
            if bench.full:
                bench.compare("ramp", {each.name: partial(ramp, each) for each in (theirs, mine)}, 1)
        # One after the other: their consumers still work when the placing has ended.
        with baseline(its, folder / "baseline-working", consumers=1) as theirs:
            bench.compare("with relay and worker", {theirs.name: partial(drive, theirs, seconds)}, max(1, rounds // 3))
        with ours(its, folder / "ours-working", relays=1, workers=1) as mine:
            bench.compare("with relay and worker", {mine.name: partial(drive, mine, seconds)}, max(1, rounds // 3))
        _flat(bench, its, folder)
    rate = "per_second"
    bench.ratio("ours / baseline", "placing", rate, "ours", "baseline", "at least 20")
    bench.ratio("ours / do-nothing handler", "placing", rate, "ours", "do-nothing handler", "at least 0.7")
    bench.ratio("baseline / ours, CPU time of an order", "placing", "cpu_us", "baseline", "ours")
    bench.ratio("do-nothing handler / ours, CPU time of an order", "placing", "cpu_us", "do-nothing handler", "ours")
    p99 = bench.median("at the baseline's highest rate", "ours", "p99_ms")
    bench.note(
        f"p99 at the baseline's highest rate, {at_most:,.0f} orders/s: ours {p99:.1f} ms, "
        f"the baseline {bench.median('placing', 'baseline', 'p99_ms'):.0f} ms (target: a tenth)"
    )


def _flat(bench: Bench, its: Servers, folder: Path) -> None:
    """What lies about in the database does not make a placement dearer."""
    rows, seconds, rounds = (5_000_000, 10, 3) if bench.full else (500_000, 4, 2)

    def run(contender: Contender, *, held: bool = False) -> Figures:
        with outbox.holding(contender.database_url) if held else contextlib.nullcontext():
            figures = drive(contender, seconds)
        carried(contender)
        return figures

    with (
        outbox.template(its, outbox.FILL_SENT, rows=rows) as template,
        ours(its, folder / "flat-none", relays=1) as none,
        ours(its, folder / "flat-many", relays=1, template=template) as many,
    ):
        for contender in (none, many):
            drive(contender, 2)  # warm
            carried(contender)
        sides = {"none": partial(run, none), f"{rows:,}": partial(run, many)}
        bench.compare("sent rows", sides, rounds)
        bench.compare("held horizon", {"free": partial(run, none), "held": partial(run, none, held=True)}, rounds)
    rate = "per_second"
    bench.ratio(f"orders/s: {rows:,} sent rows / none", "sent rows", rate, f"{rows:,}", "none", "at least 0.9")
    bench.ratio("orders/s: horizon held / free", "held horizon", rate, "held", "free", "at least 0.9")


def carried(contender: Contender) -> None:
    """Wait until the relay has carried every event, so that the next run has the machine for itself."""
    with psycopg.connect(contender.database_url, autocommit=True) as conn:
        wait_until(lambda: conn.execute(PENDING).fetchone() is None, 60, lambda: "the relay is not done")


def ramp(contender: Contender) -> Figures:
    """Ask for 100 more each second, until less than 95 % is answered three times in a row; tell the most that was."""
    rates: list[tuple[float, float]] = []
    failures = 0
    for asked in range(100, MOST_ASKED, 100):
        answered = drive(contender, 1, asked)["per_second"]
        assert isinstance(answered, float)
        rates.append((asked, answered))
        failures = failures + 1 if answered < 0.95 * asked else 0
        if failures == 3:
            break
    return {"most_per_second": max((asked for asked, answered in rates if answered >= 0.95 * asked), default=0)} | {
        "answered_by_asked": rates
    }
