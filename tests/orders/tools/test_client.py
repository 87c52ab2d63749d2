import json
import subprocess
import sys
from pathlib import Path

import pytest

from dev.sandbox.system import System
from tests.conftest import StartSystem


class Terminal:
    """Someone at a terminal, in a folder of their own."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder

    def run(self, *arguments: str, stdin: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        own = {"BASE_URL": self.system.base_url, "DATABASE_URL": self.system.database_url}
        path = {"PYTHONPATH": ":".join(path for path in sys.path if path), "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "-m", "orders.cli", *arguments],
            cwd=self.folder, env={**path, **own, **environ}, input=stdin, text=True, capture_output=True, timeout=30,
        )  # fmt: skip

    def json(self, *arguments: str, stdin: str | None = None, **environ: str) -> list[dict[str, object]]:
        done = self.run(*arguments, "--json", stdin=stdin, **environ)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def terminal(start_system: StartSystem, tmp_path: Path) -> Terminal:
    settings = {"WORK_MIN_SECONDS": "0.01", "WORK_MAX_SECONDS": "0.1"}
    return Terminal(start_system(apis=1, settings=settings, with_nginx=False), tmp_path)


def test_an_order_at_the_terminal(terminal: Terminal) -> None:
    """
    A client places, watches, gets, lists and cancels orders, and mistakes end with one line.
    """
    (placed,) = terminal.json("place", "--customer", "c", "--line", "A:B:2:100", "--reference", "[bold]")
    assert (placed["customer_id"], placed["total_minor"], placed["status"]) == ("c", 200, "placed")
    order_id = str(placed["order_id"])

    assert terminal.json("watch", order_id)[-1]["status"] == "done"
    assert "done" in terminal.run("watch", order_id).stdout
    assert terminal.json("get", order_id)[0]["status"] == "done"
    assert "A:B" in terminal.run("get", order_id).stdout
    assert [order_id] == [
        order["order_id"] for order in terminal.json("list", "--status", "done", "--reference", "[bold]")
    ]
    assert order_id in terminal.run("list").stdout
    assert "[bold]" in terminal.run("list").stdout

    late = terminal.run("cancel", order_id)
    assert (late.returncode, len(late.stderr.splitlines())) == (1, 1)
    assert "The order is done already." in late.stderr
    wrong = terminal.run("place", "--line", "A:1")
    assert (wrong.returncode, "SKU:QUANTITY:PRICE" in wrong.stderr) == (2, True)
    nobody = terminal.run("list", "--to", "http://127.0.0.1:9")
    assert (nobody.returncode, len(nobody.stderr.splitlines())) == (1, 1)


def test_where_the_service_is(terminal: Terminal) -> None:
    """
    Without --to and BASE_URL the service of `make up` in this folder is asked; without that one line says so.
    """
    assert ((nowhere := terminal.run("list", BASE_URL="")).returncode, len(nowhere.stderr.splitlines())) == (2, 1)
    (terminal.folder / ".run").mkdir()
    (terminal.folder / ".run" / "env").write_text(f"BASE_URL={terminal.system.base_url}\n")
    assert terminal.run("list", BASE_URL="").returncode == 0


def test_clients_and_purge(terminal: Terminal) -> None:
    """
    A key is shown once, works, is listed without its secret, and stops working when it is revoked.
    """
    added = terminal.run("clients", "add", "shop")
    key = added.stdout.strip()
    assert key.startswith("orders_")
    body = json.dumps(
        {"customer_id": "c", "currency": "GBP", "lines": [{"sku": "A", "quantity": 1, "unit_price_minor": 1}]}
    )
    (placed,) = terminal.json("place", "--file", "-", stdin=body, ORDERS_API_KEY=key)

    assert terminal.json("list") == []
    assert [placed["order_id"]] == [order["order_id"] for order in terminal.json("list", ORDERS_API_KEY=key)]
    listed = terminal.run("clients", "list").stdout
    assert "shop" in listed
    assert key.split("_")[1] in listed
    assert key[-20:] not in listed
    assert terminal.run("clients", "revoke", "shop").returncode == 0
    assert terminal.run("clients", "revoke", "shop").returncode == 1
    assert terminal.run("clients", "add", "a b").returncode == 2

    assert "0 orders erased" in terminal.run("purge", "--older-than", "30d").stdout
    assert terminal.run("purge", "--older-than", "soon").returncode == 2
