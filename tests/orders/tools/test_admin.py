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
    assert terminal.run("purge", "--older-than", "60y").stdout == "0 orders erased\n"


def test_a_key_is_rolled(terminal: Terminal) -> None:
    """
    A new key takes over label and scopes; the old one works until the overlap ends.
    """
    old = terminal.run("clients", "add", "shop", "--label", "till 4", "--scope", "orders:read", "--expires", "90d")
    new = terminal.run("clients", "roll", "shop", "--overlap", "1h")
    assert (old.returncode, new.returncode) == (0, 0), (old.stderr, new.stderr)
    ids = [each.stdout.split("_")[1] for each in (old, new)]
    assert f"these end by themselves: {ids[0]}" in new.stderr
    for each in (old, new):
        assert terminal.json("list", ORDERS_API_KEY=each.stdout.strip()) == []
        assert terminal.run("place", ORDERS_API_KEY=each.stdout.strip()).returncode == 1  # no such scope
    listed = terminal.run("clients", "list", COLUMNS="120").stdout
    assert listed.count("till 4") == listed.count(" read ") == 2

    ended = terminal.run("clients", "roll", "shop", "--overlap", "0s")
    assert all(key_id in ended.stderr for key_id in ids)
    assert terminal.run("clients", "roll", "nobody").returncode == 1
    assert terminal.run("clients", "add", "shop", "--scope", "everything").returncode == 2
    assert terminal.run("clients", "add", "shop", "--label", "x" * 65).returncode == 2
