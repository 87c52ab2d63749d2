import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from orders.api.auth import CONFIRM_SECONDS, Authenticator, new_key
from orders.database import api_keys_table
from orders.database.api_keys_table import SCOPES, ClientKey, KeyId, Scope
from orders.model.errors import Unauthorized
from tests.eventually import eventually
from tests.orders.conftest import NEW, Api, StartApi


async def add(conn: AsyncConnection, client: str, *scopes: Scope, lifetime: timedelta | None = None) -> dict[str, str]:
    """Make a key, and return the header that carries it."""
    token, key_id, key = new_key(client, frozenset(scopes or SCOPES))
    await api_keys_table.add(conn, key_id, key, lifetime=lifetime)
    return {"Authorization": f"Bearer {token}"}


async def test_only_the_digest_is_stored(api: Api, conn: AsyncConnection) -> None:
    """
    Whoever reads the table cannot speak for a client.
    """
    token = (await add(conn, "shop"))["Authorization"].removeprefix("Bearer ")
    cursor = await conn.execute("SELECT client_keys::text FROM client_keys")
    (row,) = await cursor.fetchall()

    assert token[-43:] not in row[0]


async def test_a_client_sees_only_its_own(api: Api, conn: AsyncConnection) -> None:
    """
    Another's order cannot be read, listed, streamed, waited for or cancelled, nor told from one that is not there.
    """
    mine, other = await add(conn, "mine"), await add(conn, "other")
    placed = (await api.client.post("/orders", json=NEW, headers=mine)).json()

    async def seen(order_id: str, headers: dict[str, str]) -> list[tuple[Any, ...]]:
        asked = {**headers, "X-Request-ID": "same"}
        answers = [
            await api.client.get(f"/orders/{order_id}", headers=asked),
            await api.client.get(f"/orders/{order_id}", headers={**asked, "Prefer": "wait=1"}),
            await api.client.get(f"/orders/{order_id}", headers={**asked, "If-None-Match": "*"}),
            await api.client.get(f"/order/get/{order_id}", headers=asked),
            await api.client.get(f"/orders/{order_id}/events", headers={**asked, "Last-Event-ID": "9"}),
            await api.client.post(f"/orders/{order_id}/cancel", headers=asked),
            await api.client.post(f"/orders/{order_id}/cancel", headers={**asked, "Idempotency-Key": "k"}),
        ]
        return [(each.status_code, each.content, sorted(set(each.headers) - {"date"})) for each in answers]

    nowhere = str(uuid4())
    for stranger in (other, {}):
        assert await seen(nowhere, stranger) == await seen(placed["order_id"], stranger)
        assert {404} == {each[0] for each in await seen(placed["order_id"], stranger)}
        assert (await api.client.get("/orders", headers=stranger)).json()["orders"] == []
        assert (await api.client.get("/orders?customer_id=17850", headers=stranger)).json()["orders"] == []
    assert [placed["order_id"]] == [
        order["order_id"] for order in (await api.client.get("/orders", headers=mine)).json()["orders"]
    ]
    assert (await api.client.post(f"/orders/{placed['order_id']}/cancel", headers=mine)).status_code == 200


async def test_keys_of_two_clients_are_apart(api: Api, conn: AsyncConnection) -> None:
    """
    Two clients may use the same Idempotency-Key, and so may those without a name.
    """
    ids = set()
    for headers in (await add(conn, "a"), await add(conn, "b"), {}):
        answer = await api.client.post("/orders", json=NEW, headers={**headers, "Idempotency-Key": "k"})
        assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (201, None)
        ids.add(answer.json()["order_id"])

    assert len(ids) == 3


async def test_a_revoked_key_stops_working(api: Api, conn: AsyncConnection) -> None:
    """
    A revoked key is refused once the keys in use are confirmed, a second later; the client's other key goes on.
    """
    first, second = await add(conn, "shop"), await add(conn, "shop")
    for headers in (first, second):
        assert (await api.client.get("/orders", headers=headers)).status_code == 200
    await api_keys_table.revoke(conn, "shop", first["Authorization"].split("_")[1])

    async def refused() -> bool:
        return (await api.client.get("/orders", headers=first)).status_code == 401

    await eventually(refused)
    assert CONFIRM_SECONDS <= 1
    assert (await api.client.get("/orders", headers=second)).status_code == 200


async def test_an_expired_key_is_refused(api: Api, conn: AsyncConnection) -> None:
    """
    A key ends by the database's clock, also while it is in use.
    """
    headers = await add(conn, "shop", lifetime=timedelta(seconds=2))
    assert (await api.client.get("/orders", headers=headers)).status_code == 200

    async def refused() -> bool:
        return (await api.client.get("/orders", headers=headers)).status_code == 401

    await eventually(refused)


async def test_scopes(api: Api, conn: AsyncConnection) -> None:
    """
    A key does what its scopes name, and gets a 403 for everything else.
    """
    order_id = (await api.client.post("/orders", json=NEW, headers=await add(conn, "shop"))).json()["order_id"]
    requests: dict[tuple[str, str], Scope] = {
        ("POST", "/orders"): "orders:place", ("POST", "/order/place"): "orders:place",
        ("GET", "/orders"): "orders:read", ("GET", f"/orders/{order_id}"): "orders:read",
        ("GET", f"/order/get/{order_id}"): "orders:read", ("POST", f"/orders/{order_id}/cancel"): "orders:cancel",
    }  # fmt: skip
    for scope in SCOPES:
        headers = await add(conn, "shop", scope)
        async with api.client.stream("GET", f"/orders/{order_id}/events", headers=headers) as stream:
            assert (stream.status_code == 403) == (scope != "orders:read")
        for (method, path), wanted in requests.items():
            answer = await api.client.request(method, path, headers=headers, json=NEW if path == "/orders" else None)
            assert (answer.status_code == 403) == (scope != wanted), (scope, method, path)


async def test_a_stream_ends_with_its_key(api: Api, conn: AsyncConnection) -> None:
    """
    A stream and a wait of a revoked key end once the keys in use are confirmed; the other key's stream goes on.
    """
    revoked, other = await add(conn, "shop"), await add(conn, "shop")
    order_id = (await api.client.post("/orders", json=NEW, headers=revoked)).json()["order_id"]
    path = f"/orders/{order_id}"
    async with (
        api.client.stream("GET", f"{path}/events", headers=revoked) as ending,
        api.client.stream("GET", f"{path}/events", headers=other) as going,
    ):
        waiting = asyncio.create_task(api.client.get(path, headers={**revoked, "Prefer": "wait=30"}))
        await eventually(lambda: api.live._watchers == 3)
        await api_keys_table.revoke(conn, "shop", revoked["Authorization"].split("_")[1])

        lines = [line async for line in ending.aiter_lines()]
        assert sum(line.startswith("data:") for line in lines) == 1
        assert (await waiting).status_code == 401
        assert api.live._watchers == 1
        assert (await api.client.post(f"{path}/cancel", headers=other)).status_code == 200
        assert "cancelled" in "".join([line async for line in going.aiter_lines()])


async def test_the_last_use_of_a_key_is_stored(api: Api, conn: AsyncConnection) -> None:
    """
    A key in use tells when it was used last, and one that was never used tells nothing.
    """
    headers, _ = await add(conn, "used"), await add(conn, "unused")
    await api.client.get("/orders", headers=headers)

    async def is_stored() -> bool:
        stored = {key.client: key.last_used_at is not None for key in await api_keys_table.list_all(conn)}
        return stored == {"used": True, "unused": False}

    await eventually(is_stored)


async def test_requests_by_key(api: Api, conn: AsyncConnection) -> None:
    """
    The metrics count requests by the id of a key that is valid; the key itself is nowhere.
    """
    headers = await add(conn, "shop")
    for _ in range(3):
        await api.client.get("/orders", headers=headers)
    await api.client.get("/orders", headers={"Authorization": "Bearer orders_0123456789ab_" + "x" * 43})
    text = (await api.client.get("/metrics")).text

    assert f'orders_key_requests_total{{key_id="{headers["Authorization"].split("_")[1]}"}} 3.0' in text
    assert "0123456789ab" not in text
    assert headers["Authorization"][-20:] not in text


async def test_a_client_has_its_share(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    A client with its share of watchers, lists or placements in hand gets a 429; its neighbour goes on.
    """
    api = await start_api(ORDERS_CLIENT_SHARE="0.0001", ORDERS_PATIENCE="20")  # one of each kind
    noisy, quiet = await add(conn, "noisy"), await add(conn, "quiet")
    placed = {
        client: (await api.client.post("/orders", json=NEW, headers=headers)).json()["order_id"]
        for client, headers in (("noisy", noisy), ("quiet", quiet))
    }
    async with api.client.stream("GET", f"/orders/{placed['noisy']}/events", headers=noisy):
        await eventually(lambda: api.live._watchers == 1)
        wait = {"Prefer": "wait=1"}
        refused = [
            await api.client.get(f"/orders/{placed['noisy']}/events", headers=noisy),
            await api.client.get(f"/orders/{placed['noisy']}", headers={**noisy, **wait}),
        ]
        assert (await api.client.get(f"/orders/{placed['quiet']}", headers={**quiet, **wait})).status_code == 200
    async with conn.transaction():
        await conn.execute("LOCK orders IN ACCESS EXCLUSIVE MODE")
        hanging = [
            asyncio.create_task(api.client.get("/orders", headers=noisy)),
            asyncio.create_task(api.client.post("/orders", json=NEW, headers=noisy)),
        ]

        async def both_wait() -> bool:
            text = (await api.client.get("/metrics")).text
            return all(f'orders_batch_waiting{{statement="{name}"}} 1.0' in text for name in ("list", "write"))

        await eventually(both_wait)
        refused += [
            await api.client.get("/orders", headers=noisy),
            await api.client.post("/orders", json=NEW, headers=noisy),
        ]
        neighbours = [
            asyncio.create_task(api.client.get("/orders", headers=quiet)),
            asyncio.create_task(api.client.post("/orders", json=NEW, headers=quiet)),
        ]
    assert [(each.status_code, each.headers.get("retry-after")) for each in refused] == [(429, "1")] * 4
    assert [each.status_code for each in await asyncio.gather(*hanging, *neighbours)] == [200, 201] * 2
    assert (await api.client.get("/orders", headers=noisy)).status_code == 200


async def test_a_new_key_works_soon_after_it_was_refused(api: Api, conn: AsyncConnection) -> None:
    """
    A key that was tried too early is believed once it is there.
    """
    token, key_id, key = new_key("shop")
    headers = {"Authorization": f"Bearer {token}"}
    assert (await api.client.get("/orders", headers=headers)).status_code == 401
    await api_keys_table.add(conn, key_id, key)

    async def accepted() -> bool:
        return (await api.client.get("/orders", headers=headers)).status_code == 200

    await eventually(accepted, 3)


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer x",
        "Basic eDp5",
        "Bearer",
        "",
        "Bearer orders_0123456789ab_" + "x" * 43,
        "Bearer  orders_0123456789ab_" + "x" * 43,
    ],
)
async def test_wrong_keys(api: Api, authorization: str) -> None:
    """
    Who shows a key that is none is not taken for anonymous.
    """
    answer = await api.client.post("/orders", json=NEW, headers={"Authorization": authorization})

    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_wrong_secret(api: Api, conn: AsyncConnection) -> None:
    """
    The id of a key is not the key.
    """
    headers = await add(conn, "shop")
    await api.client.get("/orders", headers=headers)
    wrong = {"Authorization": headers["Authorization"][:-1] + ("a" if headers["Authorization"][-1] != "a" else "b")}

    assert (await api.client.get("/orders", headers=wrong)).status_code == 401


async def test_required(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    Where keys are required nobody is anonymous, on the tutorial's routes neither; health and docs stay open.
    """
    api = await start_api(ORDERS_AUTH="required")
    for method, path in (
        ("POST", "/orders"), ("GET", "/orders"), ("GET", f"/orders/{uuid4()}"), ("POST", f"/orders/{uuid4()}/cancel"),
        ("GET", f"/orders/{uuid4()}/events"), ("POST", "/order/place"), ("GET", f"/order/get/{uuid4()}"),
    ):  # fmt: skip
        assert (await api.client.request(method, path)).status_code == 401, path
    for path in ("/health", "/openapi.json", "/docs"):
        assert (await api.client.get(path)).status_code == 200
    assert (await api.client.post("/order/place", headers=await add(conn, "shop"))).status_code == 200


async def test_a_key_in_use_costs_no_query(conn: AsyncConnection) -> None:
    """
    A key is looked up once, and confirmed for all requests by one statement a second.
    """
    token, key_id, key = new_key("shop")
    await api_keys_table.add(conn, key_id, key)
    authenticator = Authenticator(required=True)
    lookups = []

    async def find(key_id: KeyId) -> ClientKey | None:
        lookups.append(key_id)
        return (await api_keys_table.read_many(conn, [key_id])).get(key_id)

    for _ in range(100):
        caller = await authenticator.authenticate(f"Bearer {token}", "orders:read", find)
        assert (caller.client, caller.key_id) == ("shop", key_id)
    await authenticator.confirm(conn)
    assert [key_id] == lookups

    await api_keys_table.revoke(conn, "shop", None)
    await authenticator.confirm(conn)
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(f"Bearer {token}", "orders:read", find)
    assert [key_id] == lookups


async def test_a_locked_key_delays_no_other(conn: AsyncConnection, database_url: str) -> None:
    """
    While another session has locked a key's row, the last use of the others is stored without a wait.
    """
    authenticator = Authenticator(required=True)

    async def find(key_id: KeyId) -> ClientKey | None:
        return (await api_keys_table.read_many(conn, [key_id])).get(key_id)

    for client in ("locked", "other"):
        header = (await add(conn, client))["Authorization"]
        await authenticator.authenticate(header, "orders:read", find)
    async with await AsyncConnection.connect(database_url) as stranger:
        await stranger.execute("SELECT FROM client_keys WHERE client = 'locked' FOR UPDATE")
        await conn.execute("SET statement_timeout = '2s'")
        await authenticator.confirm(conn)

    used = [key.client for key in await api_keys_table.list_all(conn) if key.last_used_at]
    assert used == ["other"]


async def test_invented_keys_displace_no_valid_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    However many keys a stranger invents, a valid key stays in memory, and so do the streams and waits that it opened.
    """
    monkeypatch.setattr("orders.api.auth.MAX_KEYS", 10)
    token, key_id, key = new_key("shop")
    authenticator = Authenticator(required=True)

    async def find(asked: KeyId) -> ClientKey | None:
        return key if asked == key_id else None

    await authenticator.authenticate(f"Bearer {token}", "orders:read", find)
    for _ in range(20):
        with pytest.raises(Unauthorized):
            await authenticator.authenticate(f"Bearer {new_key('nobody')[0]}", "orders:read", find)

    assert authenticator.is_valid(key_id)


async def test_the_schema_has_no_nameless_client(conn: AsyncConnection) -> None:
    """
    No key can speak for the anonymous client.
    """
    with pytest.raises(psycopg.errors.CheckViolation):
        await api_keys_table.add(conn, KeyId("0" * 12), ClientKey("", b"\0" * 32))
