"""Invoices are sent once, through outages, at the wanted rate, and each order is followed to its end."""

import math
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection

from orders.tools.replay.client import Latencies, Replay, ReplayLimits
from orders.tools.replay.invoices import survey
from tests.orders.conftest import Api
from tests.orders.samples import counts
from tests.orders.tools.replay.conftest import Answer, Service, invoices, ok, problem, report_of, run


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
    "failure",
    [None, problem(502), problem(503, "busy", Retry_After="0"), problem(504), problem(429, "slowly")],
    ids=["no answer", "502", "503", "504", "429"],
)
def test_retries(tmp_path: Path, service: Service, failure: Answer) -> None:
    """
    After a transient failure the client sends the same request with the same key.
    """
    placed = service.on_post
    service.on_post = lambda number: failure if number == 1 else placed(number)

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


def test_failures_while_following(tmp_path: Path, service: Service) -> None:
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


def test_rate(tmp_path: Path, service: Service) -> None:
    """
    With --rate orders start at most so often.
    """
    # From the start of the command: on a busy machine the first request of all may come late.
    began = time.monotonic()
    assert run(invoices(tmp_path, 6), service, "--rate", "5").exit_code == 0
    assert service.times[-1] - began >= 5 / 5


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


@settings(deadline=None)
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


def test_batches(tmp_path: Path, service: Service) -> None:
    """
    With --batch, so many orders are sent in one request, with the keys that they have alone.
    """
    path = invoices(tmp_path, 7)
    run(path, service)
    alone, service.keys = set(service.keys), []

    result = run(path, service, "--batch", "3", "--concurrency", "1", "--json")

    assert result.exit_code == 0, result.stderr
    assert service.batches == [3, 3, 1]
    assert set(service.keys) == alone
    assert {name: report_of(result)[name] for name in ("placed", "done", "retries")} == {
        "placed": 7, "done": 7, "retries": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("failure", "lines"),
    [(problem(503, "busy"), 5), (problem(429, "slowly"), 5), (None, 7)],
    ids=["503", "429", "an answer that ends early"],
)
def test_a_line_is_sent_again(tmp_path: Path, service: Service, failure: Answer, lines: int) -> None:
    """
    The lines of a batch with a temporary failure or without an answer are sent again, and the others are not.
    """
    placed = service.on_post
    service.on_post = lambda number: failure if number == 2 else placed(number)

    result = run(invoices(tmp_path, 4), service, "--batch", "4", "--json")

    assert result.exit_code == 0, result.stderr
    assert service.batches == ([4, 1] if failure else [4, 3])
    assert len(set(service.keys)) == 4
    assert report_of(result)["retries"] == 1


@pytest.mark.parametrize(
    "failure", [None, problem(503, "busy", Retry_After="0"), problem(502)], ids=["none", "503", "502"]
)
def test_a_batch_is_sent_again(tmp_path: Path, service: Service, failure: Answer) -> None:
    """
    A batch without an answer, or with a temporary failure, is sent again with the same keys.
    """
    service.on_batch = lambda number: failure if number == 1 else True

    result = run(invoices(tmp_path, 2), service, "--batch", "2", "--json")

    assert result.exit_code == 0, result.stderr
    assert service.batches == [2, 2]
    assert len(set(service.keys)) == 2


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (problem(413, "too large"), "answered 413: too large"),
        ((200, {}, b"<html>\n"), "answered 200 with something that is no answer to its line"),
    ],
)
def test_a_batch_is_rejected(tmp_path: Path, service: Service, answer: Answer, what: str) -> None:
    """
    The orders of a batch that no retry places are rejected.
    """
    service.on_batch = lambda number: answer

    report = report_of(run(invoices(tmp_path, 2), service, "--batch", "2", "--json"))

    assert (report["rejected"], report["placed"]) == (2, 0)
    assert report["not_done"] == [{"invoice": number, "order_id": None, "what": what} for number in ("1", "2")]


def test_a_line_is_rejected(tmp_path: Path, service: Service) -> None:
    """
    A line that no retry places is reported, and the others go on.
    """
    placed = service.on_post
    service.on_post = lambda number: problem(422, "no") if number == 2 else placed(number)

    report = report_of(run(invoices(tmp_path, 3), service, "--batch", "3", "--json"))

    assert (report["placed"], report["done"], report["rejected"]) == (2, 2, 1)
    assert report["not_done"] == [{"invoice": "2", "order_id": None, "what": "answered 422: no"}]


def test_the_bytes_of_a_batch(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A batch stays below the limit of a body: what does not fit goes into the next one.
    """
    monkeypatch.setattr("orders.tools.replay.client.MAX_BATCH_BYTES", 500)

    result = run(invoices(tmp_path, 5), service, "--batch", "5", "--concurrency", "1")

    assert result.exit_code == 0, result.stderr
    assert service.batches == [2, 2, 1]


async def test_batches_to_a_real_api(tmp_path: Path, api: Api, conn: AsyncConnection) -> None:
    """
    The service takes the batches, and one that is sent again places nothing twice.
    """
    path = invoices(tmp_path, 7)
    for _ in range(2):
        # Without a worker no order ends.
        limits = ReplayLimits(batch=3, concurrency=2, patience=0.5)
        replay = Replay(path, survey(path), str(api.client.base_url), limits)
        await replay.run()
        assert (replay.placed, replay.rejected) == (7, 0)

    assert replay.placed_before == 7
    assert await counts(conn) == (7, 7, 7)
