"""`orders replay` at a terminal: what it shows and reports, and what it says to a wrong call."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from orders.tools.replay.client import Replay, ReplayLimits
from orders.tools.replay.command import default_url, replay, run_shown
from orders.tools.replay.invoices import survey
from tests.eventually import eventually
from tests.orders.tools.replay.conftest import Answer, Service, invoices, report_of, run


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


def test_currency_and_blank_rows(tmp_path: Path, service: Service) -> None:
    """
    The orders have the currency of --currency, and the report counts the rows that were skipped.
    """
    path = invoices(tmp_path, 1)
    path.write_text(path.read_text() + ",,,,,,,\n" * 3)

    result = run(path, service, "--currency", "EUR")

    assert result.exit_code == 0, result.stderr
    assert [body["currency"] for body in service.bodies] == ["EUR"]
    assert "3 blank rows skipped" in result.stderr
    assert "blank rows" in result.stdout
    assert run(path, service, "--currency", "XXQ").exit_code == 2


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
