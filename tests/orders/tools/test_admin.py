"""An operator's commands on the database: API keys, and the purge of old orders."""

import json

from tests.orders.tools.conftest import Terminal


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
