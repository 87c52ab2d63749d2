"""Orders placed a second through nginx and three apis: `make bench ONLY=placing`.

Three contenders, one after the other, again and again, with wrk and 100 connections: the tutorial's design (baseline),
ours, and our stack with a handler that does nothing. Relay and worker are stopped; ours and the baseline run once more
with them. SECONDS and ROUNDS change how long and how often.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from string import Template

import msgspec

from bench import environment
from bench.measurement import Bench
from sandbox import nginx, packages
from sandbox.ports import free_port
from sandbox.process import ROOT, Process, Spec, wait_until, write_atomically
from sandbox.servers import Servers
from sandbox.system import Counts, System
from tests import places

APIS = 3
CONNECTIONS = 100
SECONDS = int(os.environ.get("SECONDS", "10"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))


class Run(msgspec.Struct, frozen=True):
    """One run of wrk; latencies are milliseconds."""

    per_second: float
    refused: int
    errors: int
    p50: float
    p99: float


class Contender(msgspec.Struct, frozen=True):
    """Something that places orders behind a URL."""

    name: str
    url: str
    with_body: bool


def drive(contender: Contender, seconds: int) -> Run:
    """Let wrk place orders for some seconds."""
    done = subprocess.run(
        [
            "wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(ROOT / "bench" / "wrk.lua"), contender.url,
            "--", "with-body" if contender.with_body else "without-body",
        ],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    good, bad, errors, microseconds, p50, p99 = map(int, line.split()[1:])
    return Run(good / microseconds * 1e6, bad, errors, p50 / 1e3, p99 / 1e3)


@contextlib.contextmanager
def ours(its: Servers, folder: Path, *, relays: int = 0, workers: int = 0) -> Iterator[Contender]:
    """The system as `make up` starts it."""
    folder.mkdir()
    counts = Counts(apis=APIS, relays=relays, workers=workers)
    settings = {"WORK_MIN_SECONDS": "0.01", "WORK_MAX_SECONDS": "0.01"}
    with (
        places.database(its) as database,
        places.vhost(its) as vhost,
        System(database, vhost, folder, counts, settings=settings) as system,
    ):
        yield Contender("ours", f"{system.base_url}/orders", with_body=True)


@contextlib.contextmanager
def nothing(folder: Path) -> Iterator[Contender]:
    """Our uvicorn, Litestar and nginx, with a handler that does nothing."""
    folder.mkdir()
    ports = [free_port() for _ in range(APIS)]
    port = free_port()
    specs = [
        Spec(
            name=f"nothing-{number}",
            command=(sys.executable, "-m", "bench.nothing"),
            environ=os.environ | {"DATABASE_URL": "postgresql://nowhere", "ORDERS_PORT": str(each)},
            ready_url=f"http://127.0.0.1:{each}/health/ready",
        )
        for number, each in enumerate(ports, 1)
    ]
    main_file = nginx.render(folder / "nginx", port, ports, folder / "access.log", os.environ)
    with running(specs, folder, port, main_file):
        yield Contender("do-nothing handler", f"http://127.0.0.1:{port}/orders", with_body=True)


@contextlib.contextmanager
def baseline(its: Servers, folder: Path, *, consumers: int = 0) -> Iterator[Contender]:
    """The tutorial's design."""
    folder.mkdir()
    python = str(environment.ensure())
    ports = [free_port() for _ in range(APIS)]
    port = free_port()
    with places.database(its) as database, places.vhost(its) as vhost:
        urls = {"DATABASE_URL": database, "AMQP_URL": vhost, "PYTHONPATH": str(ROOT)}
        environ = os.environ | urls | {"WORK_MIN_SECONDS": "0.01", "WORK_MAX_SECONDS": "0.01"}
        specs = [
            Spec(
                name=f"baseline-{number}",
                command=(python, "-m", "uvicorn", "bench.baseline.api:app", "--port", str(each), "--no-access-log"),
                environ=environ,
                ready_url=f"http://127.0.0.1:{each}/health",
            )
            for number, each in enumerate(ports, 1)
        ]
        specs += [
            Spec(name="baseline-consumer", command=(python, "-m", "bench.baseline.consumer"), environ=environ)
            for _ in range(consumers)
        ]
        upstream = " ".join(f"server 127.0.0.1:{each};" for each in ports)
        text = Template((ROOT / "bench" / "baseline" / "nginx.conf").read_text()).safe_substitute(
            FOLDER=str(folder), PORT=str(port), UPSTREAM_SERVERS=upstream
        )
        write_atomically(folder / "nginx.conf", text)
        with running(specs, folder, port, folder / "nginx.conf"):
            yield Contender("baseline", f"http://127.0.0.1:{port}/order/place", with_body=False)


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
    """The three side by side, then ours and the baseline with all that follows a placement."""
    packages.ensure(["nginx", "wrk"])
    bench.settings(seconds=SECONDS, connections=CONNECTIONS, apis=APIS)
    with tempfile.TemporaryDirectory(prefix="placing-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        its = bench.servers
        with (
            baseline(its, folder / "baseline") as theirs,
            ours(its, folder / "ours") as mine,
            nothing(folder / "nothing") as least,
        ):
            contenders = (theirs, mine, least)
            for contender in contenders:
                drive(contender, 2)  # warm
            sides = {each.name: partial(measured, each) for each in contenders}
            bench.compare("placing alone", sides, ROUNDS)
        with ours(its, folder / "ours-working", relays=1, workers=1) as mine:
            bench.compare("with relay and worker", {mine.name: partial(measured, mine)}, ROUNDS)
        with baseline(its, folder / "baseline-working", consumers=1) as theirs:
            bench.compare("with its consumer", {theirs.name: partial(measured, theirs)}, ROUNDS)
    bench.ratio("ours / baseline", "placing alone", "per_second", "ours", "baseline", "at least 20")
    bench.ratio(
        "ours / do-nothing handler", "placing alone", "per_second", "ours", "do-nothing handler", "at least 0.7"
    )


def measured(contender: Contender) -> dict[str, float]:
    """Return one run as the record keeps it."""
    return msgspec.structs.asdict(drive(contender, SECONDS))
