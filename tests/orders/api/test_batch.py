"""Many orders in one request: each line is placed or refused by itself, as a single placement would be."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from psycopg import AsyncConnection

from dev.sandbox.wire import Wire
from orders.api.auth import new_key
from orders.api.batch import LINES_IN_HAND, MAX_LINES
from orders.api.services import BATCH_TURNS
from orders.database import api_keys_table
from tests.eventually import eventually
from tests.orders.conftest import NEW, Api, StartApi
from tests.orders.samples import counts

NDJSON = {"Content-Type": "application/x-ndjson"}


def line(key: str | None = None, **changes: Any) -> bytes:
    return msgspec.json.encode({**NEW, **({"idempotency_key": key} if key else {}), **changes})


async def send(api: Api, lines: Iterable[bytes], end: bytes = b"\n", **headers: str) -> list[dict[str, Any]]:
    """Place a batch; return the answers."""
    answer = await api.client.post("/orders/batch", content=b"\n".join(lines) + end, headers={**NDJSON, **headers})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson"), answer.text
    answers = [json.loads(each) for each in answer.content.splitlines()]
    assert [each["line"] for each in answers] == list(range(1, len(answers) + 1))
    return answers


async def test_each_line_is_an_order(api: Api, conn: AsyncConnection) -> None:
    """
    The answers to a batch have the order of its lines, and each 201 is an order that is stored with its event.
    """
    customers = [f"c{number}" for number in range(2 * LINES_IN_HAND + 1)]

    answers = await send(api, [line(customer_id=customer) for customer in customers])

    assert [each["status"] for each in answers] == [201] * len(customers)
    assert [each["order"]["customer_id"] for each in answers] == customers
    assert await counts(conn) == (len(customers), len(customers), 0)
    for each in (answers[0], answers[-1]):
        assert (await api.client.get(f"/orders/{each['order']['order_id']}")).json() == each["order"]


@pytest.mark.parametrize(
    ("bad", "status", "field", "detail"),
    [
        (b"", 400, None, "The line is blank."),
        (b" \r", 400, None, "The line is blank."),
        (b"{", 400, None, "The line is truncated"),
        (b"x", 400, None, "The line is not JSON: invalid character (byte 0)"),
        (b"null", 400, None, "Expected `object`, got `null`"),
        (b'{"customer_id":"\xff"}', 400, None, "The line is not valid UTF-8."),
        (b"\xef\xbb\xbf{}", 400, None,
         "The line begins with a byte order mark (BOM) of UTF-8: send UTF-8 without one."),
        (b'{"lines":' + b"[" * 100_000, 400, "lines[0]", "lines[0]: Expected `object`, got `array`"),
        (line(lines=[]), 400, "lines", "lines: Expected `array` of length >= 1"),
        (line(price=1), 400, "price", "price: There is no such field."),
        (line("a b"), 400, "idempotency_key", "idempotency_key: Only visible ASCII characters are allowed."),
        (line("k" * 256), 400, "idempotency_key", "idempotency_key: Expected `str` of length <= 255"),
        (line(idempotency_key=""), 400, "idempotency_key", "idempotency_key: Expected `str` of length >= 1"),
        (line(lines=[{"sku": "a", "quantity": 2, "unit_price_minor": 2**63 - 1}]), 422, "lines",
         f"the total of the lines, {2 * (2**63 - 1)}, is larger than {2**63 - 1}"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
async def test_a_bad_line_harms_no_other(
    api: Api, conn: AsyncConnection, bad: bytes, status: int, field: str | None, detail: str
) -> None:
    """
    A line that is no order gets its own problem, which names the field, and the lines beside it are placed.
    """
    answers = await send(api, [line(), bad, line()], end=b"", **{"X-Request-ID": "r-1"})

    assert [each["status"] for each in answers] == [201, status, 201]
    problem = answers[1]["problem"]
    assert problem == {
        "type": "about:blank", "title": problem["title"], "status": status, "detail": detail, "request_id": "r-1",
        **({"errors": [{"field": field, "detail": detail}]} if field else {}),
    }  # fmt: skip
    assert await counts(conn) == (2, 2, 0)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"], ids=repr)
async def test_ends_of_lines(api: Api, end: bytes) -> None:
    """
    Lines end with LF or CR LF, and the last one may lack it.
    """
    lines = [line(), line()] if end != b"\r\n" else [line() + b"\r", line()]

    assert [each["status"] for each in await send(api, lines, end)] == [201, 201]


async def test_keys(api: Api, conn: AsyncConnection) -> None:
    """
    A line's key is that of a single placement: a repeat gets the first answer, and another order a 422.
    """
    single = await api.client.post("/orders", json=NEW, headers={"Idempotency-Key": "one"})
    lines = [line("one"), line("two"), line("two"), line("three"), line("three", customer_id="other")]

    first, again = await send(api, lines), await send(api, lines)

    assert first[0] == {"line": 1, "status": 201, "order": single.json(), "replayed": True}
    assert sorted(each.get("replayed", False) for each in first[1:3]) == [False, True]
    assert first[1]["order"] == first[2]["order"]
    assert sorted(each["status"] for each in first[3:]) == [201, 422]
    assert [each["status"] for each in again] == [each["status"] for each in first]
    assert [each.get("order") for each in again] == [each.get("order") for each in first]
    assert all(each.get("replayed") for each in again if each["status"] == 201)
    assert await counts(conn) == (3, 3, 3)
    by_line = await api.client.post("/orders", json=NEW, headers={"Idempotency-Key": "two"})
    assert (by_line.json(), by_line.headers["idempotency-replayed"]) == (first[1]["order"], "true")


async def test_the_same_keys_in_batches_at_once(api: Api, conn: AsyncConnection) -> None:
    """
    Batches with the same keys in different orders place each order once.
    """
    keys = [f"k{number}" for number in range(3 * LINES_IN_HAND)]

    batches = await asyncio.gather(*(send(api, [line(key) for key in keys[::way]]) for way in (1, -1, 1, -1)))

    assert {each["status"] for answers in batches for each in answers} == {201}
    assert await counts(conn) == (len(keys),) * 3
    ids = [[each["order"]["order_id"] for each in answers] for answers in batches]
    assert ids[0] == ids[2] == ids[1][::-1] == ids[3][::-1]


@pytest.mark.parametrize(
    ("headers", "body", "status", "detail"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415, "The body must be NDJSON"),
        (NDJSON, b"", 400, "The body is empty"),
        ({**NDJSON, "Idempotency-Key": "k"}, b"{}", 400, "Each line of a batch has a key of its own"),
        (NDJSON, b"{}\n" * (MAX_LINES + 1), 413, "The batch has 1001 lines: at most 1000"),
        (NDJSON, b" " * (1 << 20) + b"\n", 413, "The body is larger than 1 MiB."),
        ({**NDJSON, "Authorization": "Bearer x"}, line(), 401, "The API key is not valid."),
    ],
)
async def test_a_batch_that_is_refused(
    api: Api, conn: AsyncConnection, headers: dict[str, str], body: bytes, status: int, detail: str
) -> None:
    """
    A fault of the request itself is its answer, and no line is placed.
    """
    answer = await api.client.post("/orders/batch", content=body, headers=headers)

    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["detail"].startswith(detail)
    assert await counts(conn) == (0, 0, 0)


async def test_a_bug_is_the_answer_to_one_line(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An error that nobody foresaw is a 500 of its line, without details.
    """
    real = __import__("orders.api.batch", fromlist=["placement_of"]).placement_of

    def broken(new: Any, **given: Any) -> Any:
        if new.customer_id == "bug":
            raise RuntimeError("secret")
        return real(new, **given)

    monkeypatch.setattr("orders.api.batch.placement_of", broken)

    answers = await send(api, [line(), line(customer_id="bug"), line()])

    assert [each["status"] for each in answers] == [201, 500, 201]
    assert answers[1]["problem"]["detail"] == "Something is wrong on our side."


async def test_a_row_that_the_database_refuses(api: Api, conn: AsyncConnection) -> None:
    """
    A row that only the database refuses is a 422 of its line; the others of its statement are stored.
    """
    await conn.execute("ALTER TABLE orders ADD CHECK (customer_id <> 'refused')")
    await conn.commit()

    answers = await send(api, [line(), line(customer_id="refused"), line()])

    assert [each["status"] for each in answers] == [201, 422, 201]
    assert (await counts(conn))[0] == 2


async def test_a_key_that_is_in_flight_elsewhere(api: Api, conn: AsyncConnection, database_url: str) -> None:
    """
    A line whose key another session is taking waits for the outcome, and is placed if that comes to nothing.
    """
    async with await AsyncConnection.connect(database_url) as other:
        await other.execute(
            "INSERT INTO idempotency_keys (client, operation, key, fingerprint, order_id, answer) "
            "VALUES ('', 'place', 'held', sha256(''), gen_random_uuid(), '')"
        )
        sending = asyncio.create_task(send(api, [line(), line("held"), line("free")]))

        async def waits() -> bool:
            cursor = await conn.execute("SELECT FROM pg_locks WHERE NOT granted")
            return await cursor.fetchone() is not None

        await eventually(waits)
        await other.rollback()
        answers = await sending

    assert [each["status"] for each in answers] == [201, 201, 201]
    assert not any(each.get("replayed") for each in answers)
    assert await counts(conn) == (3, 3, 2)


def many(prefix: str = "k") -> list[bytes]:
    return [line(f"{prefix}{number}", customer_id=f"c{number}") for number in range(MAX_LINES)]


def body_of(lines: list[bytes]) -> dict[str, Any]:
    return {"content": b"\n".join(lines), "headers": NDJSON}


async def stored(conn: AsyncConnection) -> set[str]:
    """Return the ids of the orders that have an event."""
    cursor = await conn.execute("SELECT o.order_id::text FROM orders o JOIN outbox e ON e.key = o.order_id::text")
    return {row[0] for row in await cursor.fetchall()}


async def test_the_connection_dies_within_a_batch(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    Of a batch whose client leaves, each answered line is an order, and the rest can be repeated with their keys.
    """
    api = await start_api()
    lines = many()
    async with api.client.stream("POST", "/orders/batch", **body_of(lines)) as answer:
        answered = [json.loads(await anext(answer.aiter_lines()))]
    assert {each["order"]["order_id"] for each in answered} <= await stored(conn)

    again = await send(api, lines)

    assert {each["status"] for each in again} == {201}
    assert again[0] == {**answered[0], "replayed": True}
    assert await counts(conn) == (MAX_LINES,) * 3


async def test_a_batch_ends_with_its_reader(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    Of a client that leaves, no line is placed that was not in hand already, and its share is free again.
    """
    api = await start_api()
    async with api.client.stream("POST", "/orders/batch", **body_of(many())) as answer:
        await anext(answer.aiter_lines())

    await send(api, [line()])  # once all lines in hand are placed
    after = await counts(conn)
    await send(api, [line()])

    assert after[0] < MAX_LINES
    assert (await counts(conn))[0] == after[0] + 1


async def test_the_database_goes_within_a_batch(
    start_api: StartApi, conn: AsyncConnection, wire: Wire, database_url: str
) -> None:
    """
    Of a batch that meets an outage, each 201 is an order, and every other line a 503 that can be repeated.
    """
    api = await start_api(DATABASE_URL=wire.url(database_url), ORDERS_PATIENCE="0.5")
    lines = many()
    answers: list[dict[str, Any]] = []
    async with api.client.stream("POST", "/orders/batch", **body_of(lines)) as answer:
        async for text in answer.aiter_lines():
            if not answers:
                wire.cut()
            answers.append(json.loads(text))

    assert [each["line"] for each in answers] == list(range(1, MAX_LINES + 1))
    assert {each["status"] for each in answers} == {201, 503}
    told = {each["order"]["order_id"] for each in answers if each["status"] == 201}
    assert told <= await stored(conn)
    assert answers[-1]["problem"]["detail"] == "The database does not answer in time."
    wire.mend()

    async def is_back() -> bool:
        return (await api.client.get("/health/ready")).status_code == 200

    await eventually(is_back)
    again = await send(api, lines)
    assert {each["status"] for each in again} == {201}
    assert [each["order"] for each in again if answers[each["line"] - 1]["status"] == 201] == [
        each["order"] for each in answers if each["status"] == 201
    ]
    assert await counts(conn) == (MAX_LINES,) * 3


async def test_an_absent_database(start_api: StartApi, wire: Wire, database_url: str) -> None:
    """
    A batch of which no line can be placed gets the 503 that a single placement gets.
    """
    api = await start_api(DATABASE_URL=wire.url(database_url), ORDERS_PATIENCE="0.3")
    wire.cut()

    answer = await api.client.post("/orders/batch", **body_of(many()))

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["detail"] == "The database does not answer in time."


async def test_old_events_refuse_a_batch(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    While the oldest unsent event is too old, a batch gets a 503 as a single placement does.
    """
    api = await start_api(ORDERS_MAX_OUTBOX_AGE="60")
    await api.place()
    await conn.execute("UPDATE outbox SET created_at = created_at - interval '100 seconds'")

    async def is_refused() -> bool:
        answer = await api.client.post("/orders/batch", **body_of([line()]))
        return answer.status_code == 503 and "cannot be delivered" in answer.json()["detail"]

    await eventually(is_refused)


async def test_lines_count_in_the_share(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    A batch takes of its client's share of placements what it has in hand, not one; beyond it the answer is 429.
    """
    api = await start_api(ORDERS_QUEUE_ROWS=str(2 * LINES_IN_HAND), ORDERS_PATIENCE="20")  # the share: half of it
    token, key_id, key = new_key("shop")
    await api_keys_table.add(conn, key_id, key)
    mine = {"Authorization": f"Bearer {token}"}
    async with conn.transaction():
        await conn.execute("LOCK orders IN ACCESS EXCLUSIVE MODE")
        body = b"\n".join(many()[:LINES_IN_HAND])
        first = asyncio.create_task(api.client.post("/orders/batch", content=body, headers=NDJSON | mine, timeout=30))
        await eventually(lambda: waiting() == LINES_IN_HAND)
        refused = [
            await api.client.post("/orders/batch", content=line(), headers=NDJSON | mine),
            await api.client.post("/orders", json=NEW, headers=mine),
        ]

    assert [(each.status_code, each.headers.get("retry-after")) for each in refused] == [(429, "1")] * 2
    assert (await first).status_code == 200
    assert (await api.client.post("/orders", json=NEW, headers=mine)).status_code == 201


def waiting() -> float:
    """Return how many orders wait for the writers."""
    return REGISTRY.get_sample_value("orders_batch_waiting", {"statement": "write"}) or 0


async def test_single_placements_beside_batches(api: Api) -> None:
    """
    However many batches there are, few of their lines wait for the writers, and single placements go on between them.
    """
    at_once: list[float] = []
    single = 0
    batches = asyncio.gather(*(api.client.post("/orders/batch", **body_of(many(f"{each}-"))) for each in range(10)))
    while not batches.done():
        await api.place()
        single += 1
        at_once.append(waiting())

    assert {each.status_code for each in batches.result()} == {200}
    assert all(each.text.count('"status":201') == MAX_LINES for each in batches.result())
    assert 0 < max(at_once) <= BATCH_TURNS * LINES_IN_HAND
    assert single >= 10


async def test_a_stop_within_a_batch(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    An api that stops finishes the batch that it has in hand.
    """
    api = await start_api()
    async with api.client.stream("POST", "/orders/batch", **body_of(many())) as answer:
        lines = answer.aiter_lines()
        answers = [await anext(lines)]
        api.stop()
        answers += [each async for each in lines]

    assert [json.loads(each)["status"] for each in answers] == [201] * MAX_LINES
    assert await counts(conn) == (MAX_LINES,) * 3
