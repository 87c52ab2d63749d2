"""A service of orders that answers as a test wants, and a file of invoices to replay against it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from orders.tools.replay.command import replay

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
        self.batches: list[int] = []  # lines
        self.on_batch: Callable[[int], Answer | Literal[True]] = lambda number: True  # True: the answers to its lines
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

    def batch(self, body: bytes) -> Answer:
        """Answer each line as `post` would, in a batch; what `post` closes on ends the answer."""
        with self._lock:
            self.batches.append(body.count(b"\n"))
        lines = []
        for number, line in enumerate(body.splitlines(), 1):
            answer = self.post(json.loads(line)["idempotency_key"], line)
            if answer is None:
                break
            code, _, told = answer
            what = {"order": json.loads(told)} if code == 201 else {"problem": json.loads(told)}
            lines.append(json.dumps({"line": number, "status": code, **what}))
        return 200, {"Content-Type": "application/x-ndjson"}, "".join(f"{line}\n" for line in lines).encode()

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
            if self.path == "/orders/batch":
                answer = service.batch(body)
                instead = service.on_batch(len(service.batches))
                self.give(answer if instead is True else instead)
            else:
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
