"""A client's commands at a terminal, against a running system."""

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
