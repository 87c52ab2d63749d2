"""A client's commands at a terminal, against a running system."""

import time
from datetime import UTC, datetime

import psycopg
import pytest

from orders.model.currencies import amount_text
from tests.orders.tools.conftest import Terminal


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


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        (123_450, "GBP", "1,234.50 GBP"), (5, "EUR", "0.05 EUR"), (1_234, "JPY", "1,234 JPY"),
        (1_005, "KWD", "1.005 KWD"), (0, "GBP", "0.00 GBP"),
    ],
)  # fmt: skip
def test_money(minor: int, currency: str, text: str) -> None:
    """
    An amount in minor units is shown with the digits of its currency.
    """
    assert amount_text(minor, currency) == text


def test_every_order_fits_80_columns(terminal: Terminal) -> None:
    """
    A list is as wide as a terminal; neither the id nor the total of an order is cut.
    """
    reference = "r" * 200
    (placed,) = terminal.json("place", "--customer", "c" * 64, "--reference", reference, "--line", "A:2:12345650")

    shown = terminal.run("list", COLUMNS="80").stdout

    assert max(map(len, shown.splitlines())) <= 80
    for whole in (placed["order_id"], "246,913.00 GBP", str(placed["created_at"])[:16].replace("T", " ")):
        assert f"{whole} " in f"{shown} ".replace("\n", " ")
    assert shown.count("r") >= 200


def test_a_time_of_a_list(terminal: Terminal) -> None:
    """
    --since and --until bound the time of the placement.
    """
    ids = [terminal.json("place", "--line", "A:1:1")[0]["order_id"]]
    between = datetime.now(UTC).isoformat()
    time.sleep(0.01)
    ids += [terminal.json("place", "--line", "A:1:1")[0]["order_id"] for _ in range(2)]

    def listed(*words: str) -> list[object]:
        return [order["order_id"] for order in terminal.json("list", *words)]

    assert listed("--since", between) == ids[:0:-1]
    assert listed("--until", between)[0] == ids[0]
    assert listed("--since", "1h", "--until", between, "--limit", "0")[0] == ids[0]
    assert "soon" in terminal.run("list", "--since", "soon").stderr


def test_attempts_of_an_order(terminal: Terminal) -> None:
    """
    `orders get --attempts` shows an operator how attempts ended, from the database alone.
    """
    (placed,) = terminal.json("place", "--line", "A:1:1")
    order_id = str(placed["order_id"])
    with psycopg.connect(terminal.system.database_url) as conn:
        conn.execute(
            "UPDATE orders SET attempt_log = log_attempt(NULL, 1, now(), 'retry', 'host/7', 'KeyError', '[a]', now())"
        )

    (attempt,) = terminal.json("get", order_id, "--attempts", BASE_URL="http://127.0.0.1:9")[:1]
    assert (attempt["attempt"], attempt["outcome"], attempt["reason"]) == (1, "retry", "[a]")
    shown = terminal.run("get", order_id, "--attempts", COLUMNS="80").stdout
    assert "retry" in shown
    assert "host/7" in shown
    assert "[a]" in shown
    nobody = terminal.run("get", "01890000-0000-7000-8000-000000000000", "--attempts")
    assert (nobody.returncode, len(nobody.stderr.splitlines())) == (1, 1)
    assert terminal.run("get", "x", "--attempts").returncode == 2
