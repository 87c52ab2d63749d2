"""What a replay sends, what it does about answers that are no orders, and what it reports."""

import asyncio
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orders.tools.replay.client import Latencies, Replay, ReplayLimits
from orders.tools.replay.command import default_url, replay, run_shown
from orders.tools.replay.invoices import survey
from tests.eventually import eventually

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
TIMES = {"created_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:00.25Z"}

Answer = tuple[int, dict[str, str], bytes] | None  # None: the connection is closed without a word


def ok(code: int, **fields: object) -> Answer:
    return code, {}, json.dumps(TIMES | fields).encode()


def problem(code: int, detail: str = "", **headers: str) -> Answer:
    return code, headers, json.dumps({"detail": detail}).encode() if detail else b"<html>"


class Service:
    """A service of orders that answers as a test wants it, over real HTTP; each order is done when it is looked at."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.bodies: list[dict[str, object]] = []
        self.times: list[float] = []
        self.looks = 0
        self.at_once = 0
        self.most_at_once = 0
        self.on_post: Callable[[int], Answer] = lambda number: ok(201, order_id=self.order_id(number), status="placed")
        self.on_get: Callable[[str], Answer] = lambda order_id: ok(200, order_id=order_id, status="done")
        self.url = ""
        self._lock = threading.Lock()

    @staticmethod
    def order_id(number: int) -> str:
        return str(UUID(int=number))

    def post(self, key: str, body: bytes) -> Answer:
        with self._lock:
            self.keys.append(key)
            self.bodies.append(json.loads(body))
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            number = len(self.keys)
        try:
            return self.on_post(number)
        finally:
            with self._lock:
                self.at_once -= 1

    def get(self, order_id: str) -> Answer:
        with self._lock:
            self.looks += 1
        return self.on_get(order_id)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.give(service.post(self.headers["Idempotency-Key"], body))

        def do_GET(self) -> None:
            self.give(service.get(self.path.removeprefix("/orders/")))

        def give(self, answer: Answer) -> None:
            if answer is None:
                self.close_connection = True
                return
            code, headers, body = answer
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        service.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="service")
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(Service()) as running:
        yield running


def invoices(folder: Path, count: int = 3, *, refused: int = 0) -> Path:
    path = folder / "invoices.csv"
    rows = [f"{n},SKU,THING,2,01/12/2010 08:26,1.5,,United Kingdom\n" for n in range(1, count + 1)]
    rows += [f"C{n},SKU,THING,-2,01/12/2010 08:26,1.5,,United Kingdom\n" for n in range(1, refused + 1)]
    path.write_text(HEADER + "".join(rows))
    return path


def run(path: Path, service: Service, *options: str) -> Result:
    return CliRunner().invoke(replay, [str(path), "--to", service.url, *options])


def report_of(result: Result) -> dict[str, object]:
    report: dict[str, object] = json.loads(result.stdout)
    return report


def test_all_done(tmp_path: Path, service: Service) -> None:
    """
    Each accepted invoice becomes one order, and the report counts and measures what became of them.
    """
    result = run(invoices(tmp_path, 3, refused=2), service, "--json")

    assert result.exit_code == 0, result.stderr
    assert sorted(str(body["reference"]) for body in service.bodies) == ["1", "2", "3"]
    assert service.bodies[0] == {
        "customer_id": "guest",
        "currency": "GBP",
        "lines": [{"sku": "SKU", "quantity": 2, "unit_price_minor": 150, "description": "THING"}],
        "reference": service.bodies[0]["reference"],
    }
    report = report_of(result)
    counts = {name: report[name] for name in ("invoices", "accepted", "refused", "placed", "done", "retries")}
    assert counts == {"invoices": 5, "accepted": 3, "refused": 2, "placed": 3, "done": 3, "retries": 0}
    assert report["refused_by"] == {"cancellation": {"count": 2, "example": "C1, line 5"}}
    legs = report["legs"]
    assert isinstance(legs, dict)
    assert legs["placed_to_end"]["p50_ms"] == pytest.approx(250, rel=0.011)
    assert legs["accept"]["orders"] == 3


def test_table(tmp_path: Path, service: Service) -> None:
    """
    Without --json people get a table, and plain lines of progress beside it.
    """
    result = run(invoices(tmp_path, 3, refused=2), service)

    assert result.exit_code == 0
    assert "it is a cancellation (C1, line 5)" in result.stdout
    assert "3 placed, 3 done of 3" in result.stderr
    assert "5 invoices: 3 to place, 2 refused" in result.stderr


def test_bar(tmp_path: Path, service: Service) -> None:
    """
    On a terminal two bars move: placed, and done.
    """
    path = invoices(tmp_path, 3)
    running = Replay(path, survey(path), service.url, ReplayLimits())
    screen = io.StringIO()
    asyncio.run(run_shown(running, Console(file=screen, force_terminal=True, width=100)))

    assert "placed" in screen.getvalue()
    assert screen.getvalue().count("3/3") >= 2


def test_same_keys(tmp_path: Path, service: Service) -> None:
    """
    The same file has the same keys again; another run's name, or another content, has others.
    """
    path = invoices(tmp_path)
    keys = []
    for options in ((), (), ("--run", "again")):
        run(path, service, *options)
        keys.append(frozenset(service.keys))
        service.keys.clear()
    run(invoices(tmp_path, 4), service)
    keys.append(frozenset(service.keys))

    assert keys[0] == keys[1]
    assert keys[0].isdisjoint(keys[2])
    assert keys[0].isdisjoint(keys[3])
    assert {key.rpartition("-")[2] for key in keys[0]} == {"1", "2", "3"}


@pytest.mark.parametrize(
    "weather",
    [None, problem(502), problem(503, "busy", Retry_After="0"), problem(504), problem(429, "slowly")],
    ids=["no answer", "502", "503", "504", "429"],
)
def test_retries(tmp_path: Path, service: Service, weather: Answer) -> None:
    """
    Weather is answered by the same request with the same key.
    """
    placed = service.on_post
    service.on_post = lambda number: weather if number == 1 else placed(number)

    result = run(invoices(tmp_path, 1), service, "--json")

    assert result.exit_code == 0, result.stderr
    assert len(service.keys) == 2
    assert len(set(service.keys)) == 1
    assert report_of(result)["retries"] == 1


def test_retry_after(tmp_path: Path, service: Service) -> None:
    """
    The service's Retry-After is kept to.
    """
    placed = service.on_post
    service.on_post = lambda number: problem(503, "busy", Retry_After="1") if number == 1 else placed(number)

    assert run(invoices(tmp_path, 1), service).exit_code == 0
    assert service.times[1] - service.times[0] >= 1


def test_weather_while_following(tmp_path: Path, service: Service) -> None:
    """
    A look that is not answered is repeated.
    """
    done = service.on_get
    service.on_get = lambda order_id: done(order_id) if service.looks > 3 else problem(503, "busy", Retry_After="0")

    assert run(invoices(tmp_path, 1), service).exit_code == 0


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (problem(422, "This Idempotency-Key was used before."), "answered 422: This Idempotency-Key was used before."),
        (problem(500), "answered 500 Internal Server Error"),
        ((201, {}, b"<html>"), "answered 201 with something that is no order"),
    ],
)
def test_rejected(tmp_path: Path, service: Service, answer: Answer, what: str) -> None:
    """
    What no retry mends is sent once and reported; the others go on.
    """
    placed = service.on_post
    service.on_post = lambda number: answer if number == 1 else placed(number)

    result = run(invoices(tmp_path, 3), service, "--json", "--concurrency", "1")

    assert result.exit_code == 1
    assert len(service.keys) == 3
    report = report_of(result)
    assert (report["placed"], report["done"], report["rejected"]) == (2, 2, 1)
    assert report["not_done"] == [{"invoice": "1", "order_id": None, "what": what}]
    assert "1 orders are not done; 2 of 3 were placed, 2 are done" in result.stderr


@pytest.mark.parametrize(
    ("answer", "count", "what"),
    [
        (
            ok(200, order_id=Service.order_id(1), status="failed", failure_reason="no stock"),
            "failed",
            "failed: no stock",
        ),
        (ok(200, order_id=Service.order_id(1), status="cancelled"), "cancelled", "cancelled"),
        (problem(404, "Order not found"), "lost", "answered 404: Order not found"),
    ],
)
def test_not_done(tmp_path: Path, service: Service, answer: Answer, count: str, what: str) -> None:
    """
    An order with another end than done is reported, with the reason.
    """
    service.on_get = lambda order_id: answer

    result = run(invoices(tmp_path, 1), service, "--json")

    assert result.exit_code == 1
    report = report_of(result)
    assert (report["placed"], report["done"], report[count]) == (1, 0, 1)
    assert report["not_done"] == [{"invoice": "1", "order_id": Service.order_id(1), "what": what}]


def test_never_done(tmp_path: Path, service: Service) -> None:
    """
    When nothing moves for longer than the patience, what is not done is said.
    """
    service.on_get = lambda order_id: ok(200, order_id=order_id, status="processing")

    result = run(invoices(tmp_path, 2), service, "--json", "--patience", "0.5")

    assert result.exit_code == 1
    report = report_of(result)
    assert (report["placed"], report["done"], report["unfinished"]) == (2, 0, 2)
    assert "still processing" in result.stdout
    assert "nothing moved for 0.5 s; 2 of 2 were placed, 0 are done" in result.stderr


def test_nobody_there(tmp_path: Path, service: Service) -> None:
    """
    A service that is not there is waited for, as long as the patience lasts, and named.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    result = run(invoices(tmp_path, 2), service, "--json", "--patience", "0.5")

    assert result.exit_code == 1
    report = report_of(result)
    assert (report["placed"], report["unplaced"]) == (0, 2)
    assert "nothing moved for 0.5 s; the last trouble was: POST /orders: " in result.stderr


def test_malformed_sends_nothing(tmp_path: Path, service: Service) -> None:
    """
    Of a malformed file nothing is sent, however late the error comes.
    """
    path = invoices(tmp_path, 100)
    path.write_text(path.read_text() + "101,SKU,THING,two,,1.5,,\n")

    result = run(path, service)

    assert result.exit_code == 2
    assert "line 102: Quantity is 'two', and not a whole number; nothing was sent" in result.stderr
    assert service.keys == []


def test_file_changed_meanwhile(tmp_path: Path, service: Service) -> None:
    """
    A file that breaks while it is being sent ends the sending, and it is said how far that came.
    """
    path = invoices(tmp_path, 600)  # several times what is read ahead
    size = path.stat().st_size
    placed = service.on_post

    def break_it(number: int) -> Answer:
        with path.open("r+b") as file:
            file.seek(size // 2)
            file.write(b"\n\n")
        return placed(number)

    service.on_post = break_it
    result = run(path, service, "--json")

    assert result.exit_code == 2
    assert "has been changed meanwhile: line " in result.stderr
    report = report_of(result)
    assert report["placed"] == report["done"] == len(service.keys) < 600


@pytest.mark.parametrize(
    "options", [["--to", "localhost"], ["--run", "a b"], ["--rate", "0"], ["--concurrency", "0"], ["--patience", "-1"]]
)
def test_wrong_call(tmp_path: Path, options: list[str]) -> None:
    """
    A wrong option is named.
    """
    result = CliRunner().invoke(replay, [str(invoices(tmp_path)), *options])

    assert result.exit_code == 2
    assert options[0] in result.stderr


def test_pipe(tmp_path: Path) -> None:
    """
    A pipe cannot be read twice, and is refused.
    """
    os.mkfifo(tmp_path / "pipe")
    result = CliRunner().invoke(replay, [str(tmp_path / "pipe")])

    assert result.exit_code == 2
    assert "a pipe does not do" in result.stderr


def test_rate(tmp_path: Path, service: Service) -> None:
    """
    With --rate orders start at most so often.
    """
    assert run(invoices(tmp_path, 6), service, "--rate", "20").exit_code == 0
    assert service.times[-1] - service.times[0] >= 5 / 20 - 0.02


def test_slow_rate_is_no_stall(tmp_path: Path, service: Service) -> None:
    """
    A pause that --rate asks for may be longer than the patience.
    """
    assert run(invoices(tmp_path, 3), service, "--rate", "2", "--patience", "0.3").exit_code == 0


def test_concurrency(tmp_path: Path, service: Service) -> None:
    """
    At most --concurrency placements wait for their answer.
    """
    everybody = threading.Barrier(3)
    placed = service.on_post

    def together(number: int) -> Answer:
        everybody.wait(timeout=10)
        return placed(number)

    service.on_post = together
    assert run(invoices(tmp_path, 12), service, "--concurrency", "3").exit_code == 0
    assert service.most_at_once == 3


def test_interrupted(tmp_path: Path, service: Service) -> None:
    """
    Ctrl-C ends it at once, with a report of what was sent; the same command finishes the rest.
    """
    placed = service.on_post
    last = threading.Event()

    def stuck(number: int) -> Answer:
        if number > 2:
            last.wait(30)
        return placed(number)

    service.on_post = stuck
    command = [sys.executable, "-c", "from orders.tools.replay.command import replay; replay()"]
    path = invoices(tmp_path, 3)
    with subprocess.Popen(
        [*command, str(path), "--to", service.url, "--json", "--concurrency", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in a shell's background has SIGINT ignored by all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        asyncio.run(eventually(lambda: len(service.keys) == 3 and service.looks == 2))
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=10)
    last.set()
    first_keys = set(service.keys)

    assert running.returncode == 130
    assert json.loads(out)["placed"] == 2
    assert "interrupted; 2 of 3 were placed" in err
    service.on_post = placed
    assert run(path, service).exit_code == 0
    assert set(service.keys) == first_keys


def test_default_url(tmp_path: Path) -> None:
    """
    BASE_URL comes from the environment, then from the running system, then it is compose's.
    """
    env = tmp_path / "env"
    assert default_url({}, env) == "http://127.0.0.1:8080"
    env.write_text("BASE_URL=http://127.0.0.1:1\nAPI_URLS=http://127.0.0.1:2\n")
    assert default_url({}, env) == "http://127.0.0.1:1"
    assert default_url({"BASE_URL": "http://shop"}, env) == "http://shop"


@given(st.lists(st.floats(1e-5, 1e5), min_size=1), st.sampled_from([0.5, 0.99]))
def test_percentiles(latencies: list[float], share: float) -> None:
    """
    A percentile is that of the exact values to 1 %.
    """
    counted = Latencies()
    for seconds in latencies:
        counted.add(seconds)

    exact = sorted(latencies)[math.ceil(share * len(latencies)) - 1]
    assert counted.percentile(share) == pytest.approx(exact, rel=0.0101)
