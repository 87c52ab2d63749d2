"""Bad input is answered with what is wrong with it, stores nothing, and never looks like our fault.

Each case is sent through nginx and to an api itself, byte for byte, on connections of its own.
"""

import asyncio
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec
import psycopg
import pytest

from dev.sandbox.servers import Servers
from dev.sandbox.system import Counts, System
from tests import places
from tests.orders.samples import counts

JSON = "application/json"
MOST_BIGINT = 2**63 - 1

ORDER = {
    "customer_id": "17850",
    "currency": "GBP",
    "lines": [{"sku": "85123A", "quantity": 6, "unit_price_minor": 255}],
}


class Bad(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has to be refused, and how."""

    body: bytes
    status: int = 400
    field: str | None = None
    more: Sequence[str] = ()  # further fields that are wrong
    headers: Mapping[str, str] = msgspec.field(default_factory=lambda: {"Content-Type": JSON})


class Answer(msgspec.Struct, frozen=True):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def order(**changes: object) -> bytes:
    """A good order, with some of its fields changed; `...` takes one out."""
    changed = {name: value for name, value in {**ORDER, **changes}.items() if value is not ...}
    return json.dumps(changed).encode()


def line(**changes: object) -> bytes:
    """A good order of one line, with some of the line's fields changed."""
    changed = {name: value for name, value in {**ORDER["lines"][0], **changes}.items() if value is not ...}  # type: ignore[dict-item]
    return order(lines=[changed])


def key(value: str) -> dict[str, str]:
    return {"Content-Type": JSON, "Idempotency-Key": value}


CASES = {
    # Not JSON at all.
    "empty body": Bad(body=b""),
    "half a body": Bad(body=order()[:-10]),
    "two bodies": Bad(body=order() * 2),
    "single quotes": Bad(body=order().replace(b'"', b"'")),
    "NaN": Bad(body=order().replace(b"255", b"NaN")),
    "form data": Bad(body=b"customer_id=17850&currency=GBP"),
    "invalid UTF-8 in a string": Bad(body=order().replace(b"17850", b"178\xff50")),
    "invalid UTF-8 in a name": Bad(body=order().replace(b"customer_id", b"customer\xc3id")),
    "truncated UTF-8": Bad(body=order(customer_id="ü").replace(b"\\u00fc", b"\xc3")),
    "lone surrogate": Bad(body=order().replace(b"17850", b"\\ud800")),
    "raw control character": Bad(body=order().replace(b"17850", b"17\x0050")),
    "byte order mark": Bad(body=b"\xef\xbb\xbf" + order()),
    "UTF-16": Bad(body=order().decode().encode("utf-16")),
    "100,000 open brackets": Bad(body=b"[" * 100_000),
    "100,000 nested brackets": Bad(body=b"[" * 100_000 + b"]" * 100_000),
    "100,000 nested objects": Bad(body=b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "100,000 brackets in a field": Bad(body=order(lines="X").replace(b'"X"', b"[" * 100_000 + b"]" * 100_000)),
    "100,000 brackets in a line": Bad(body=order(lines="X").replace(b'"X"', b'[{"sku":' + b"[" * 100_000)),
    # Not an order.
    "null": Bad(body=b"null"),
    "a list": Bad(body=b"[]"),
    "a string": Bad(body=b'"order"'),
    "a number": Bad(body=b"1e400"),
    "an empty object": Bad(body=b"{}", field="customer_id", more=("currency", "lines")),
    # Missing, unknown, of a wrong type.
    "no customer": Bad(body=order(customer_id=...), field="customer_id"),
    "no currency": Bad(body=order(currency=...), field="currency"),
    "no lines": Bad(body=order(lines=...), field="lines"),
    "no sku": Bad(body=line(sku=...), field="lines[0].sku"),
    "no quantity": Bad(body=line(quantity=...), field="lines[0].quantity"),
    "no price": Bad(body=line(unit_price_minor=...), field="lines[0].unit_price_minor"),
    "unknown field": Bad(body=order(discount=1), field="discount"),
    "unknown field of a line": Bad(body=line(discount=1), field="lines[0].discount"),
    "status given": Bad(body=order(status="done"), field="status"),
    "order_id given": Bad(body=order(order_id="00000000-0000-0000-0000-000000000000"), field="order_id"),
    "customer is a number": Bad(body=order(customer_id=17850), field="customer_id"),
    "customer is null": Bad(body=order(customer_id=None), field="customer_id"),
    "lines are an object": Bad(body=order(lines={}), field="lines"),
    "line is a string": Bad(body=order(lines=["85123A"]), field="lines[0]"),
    "quantity is a string": Bad(body=line(quantity="6"), field="lines[0].quantity"),
    "quantity is a fraction": Bad(body=line(quantity=1.5), field="lines[0].quantity"),
    "quantity is true": Bad(body=line(quantity=True), field="lines[0].quantity"),
    "price is a float": Bad(body=line(unit_price_minor=2.55), field="lines[0].unit_price_minor"),
    "reference is a list": Bad(body=order(reference=[]), field="reference"),
    "everything": Bad(
        body=order(
            customer_id=1,
            currency="gbp",
            reference="a\n",
            discount=1,
            lines=[{"quantity": 0}, ORDER["lines"][0], {"sku": "", "quantity": 2.5, "unit_price_minor": 1, "x": 1}, 7],
        ),
        field="customer_id",
        more=(
            "currency",
            "lines[0].sku",
            "lines[0].quantity",
            "lines[0].unit_price_minor",
            "lines[2].sku",
            "lines[2].quantity",
            "lines[2].x",
            "lines[3]",
            "reference",
            "discount",
        ),
    ),
    "a wrong field and a broken end": Bad(body=order(customer_id=1)[:-10], field="customer_id"),
    # Out of range.
    "empty customer": Bad(body=order(customer_id=""), field="customer_id"),
    "long customer": Bad(body=order(customer_id="a" * 65), field="customer_id"),
    "empty sku": Bad(body=line(sku=""), field="lines[0].sku"),
    "long sku": Bad(body=line(sku="a" * 65), field="lines[0].sku"),
    "long description": Bad(body=line(description="a" * 201), field="lines[0].description"),
    "long reference": Bad(body=order(reference="a" * 201), field="reference"),
    "no such currency": Bad(body=order(currency="XXQ"), field="currency"),
    "small letters": Bad(body=order(currency="gbp"), field="currency"),
    "no line": Bad(body=order(lines=[]), field="lines"),
    "1,001 lines": Bad(body=order(lines=[{"sku": "a", "quantity": 1, "unit_price_minor": 1}] * 1001), field="lines"),
    "quantity 0": Bad(body=line(quantity=0), field="lines[0].quantity"),
    "quantity -1": Bad(body=line(quantity=-1), field="lines[0].quantity"),
    "quantity beyond 31 bits": Bad(body=line(quantity=2**31), field="lines[0].quantity"),
    "quantity beyond 64 bits": Bad(body=line(quantity=2**64), field="lines[0].quantity"),
    "quantity of 100 digits": Bad(body=line(quantity=10**100), field="lines[0].quantity"),
    "negative quantity beyond 64 bits": Bad(body=line(quantity=-(2**64)), field="lines[0].quantity"),
    "price -1": Bad(body=line(unit_price_minor=-1), field="lines[0].unit_price_minor"),
    "price of 2^63": Bad(body=line(unit_price_minor=2**63), field="lines[0].unit_price_minor"),
    "price of 2^64": Bad(body=line(unit_price_minor=2**64), field="lines[0].unit_price_minor"),
    "price of 10^26": Bad(body=line(unit_price_minor=10**26), field="lines[0].unit_price_minor"),
    "price of 5,000 digits": Bad(body=order().replace(b"255", b"9" * 5000), field="lines[0].unit_price_minor"),
    "total beyond 64 bits": Bad(body=line(quantity=2, unit_price_minor=MOST_BIGINT), status=422, field="lines"),
    "sum of lines beyond 64 bits": Bad(
        body=order(lines=[{"sku": "a", "quantity": 1, "unit_price_minor": MOST_BIGINT}] * 2), status=422, field="lines"
    ),
    # Characters that a text column or a log line cannot take.
    "NUL in the customer": Bad(body=order(customer_id="17\0850"), field="customer_id"),
    "NUL alone": Bad(body=order(customer_id="\0"), field="customer_id"),
    "NUL in the sku": Bad(body=line(sku="85123A\0"), field="lines[0].sku"),
    "NUL in the description": Bad(body=line(description="\0"), field="lines[0].description"),
    "NUL in the reference": Bad(body=order(reference="a\0"), field="reference"),
    "NUL in the currency": Bad(body=order(currency="GB\0"), field="currency"),
    "NUL in a field's name": Bad(body=order(**{"customer\0": "a"})),
    "escape character": Bad(body=order(reference="\x1b[2J"), field="reference"),
    "final newline": Bad(body=order(reference="a\n"), field="reference"),
    "line separator": Bad(body=order(reference="a\u2028b"), field="reference"),
    # What the body is said to be.
    "no Content-Type": Bad(body=order(), status=415, headers={}),
    "form Content-Type": Bad(body=order(), status=415, headers={"Content-Type": "application/x-www-form-urlencoded"}),
    "text Content-Type": Bad(body=order(), status=415, headers={"Content-Type": "text/plain"}),
    "multipart Content-Type": Bad(
        body=order(), status=415, headers={"Content-Type": "multipart/form-data; boundary=x"}
    ),
    "almost JSON": Bad(body=order(), status=415, headers={"Content-Type": "application/jsonp"}),
    "XML": Bad(body=b"<order/>", status=415, headers={"Content-Type": "application/xml"}),
    "empty Content-Type": Bad(body=order(), status=415, headers={"Content-Type": ""}),
    "nonsense Content-Type": Bad(body=order(), status=415, headers={"Content-Type": ";;;=\x80"}),
    "gzip": Bad(body=gzip.compress(order()), status=415, headers={"Content-Type": JSON, "Content-Encoding": "gzip"}),
    "gzip that does not say so": Bad(body=gzip.compress(order()), status=415),
    # The key.
    "empty key": Bad(body=order(), headers=key("")),
    "long key": Bad(body=order(), headers=key("k" * 256)),
    "key with a space": Bad(body=order(), headers=key("a b")),
    "key with a tab": Bad(body=order(), headers=key("a\tb")),
    "key beyond ASCII": Bad(body=order(), headers=key("schlüssel")),
    "key with DEL": Bad(body=order(), headers=key("a\x7fb")),
    # Too much.
    "a little more than 1 MiB": Bad(body=order() + b" " * (1 << 20), status=413),
    "20 MB": Bad(body=b'{"customer_id":"' + b"a" * 20_000_000 + b'"}', status=413),
    "20 MB of brackets": Bad(body=b"[" * 20_000_000, status=413),
}


@pytest.fixture(scope="module")
def system(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """nginx and an api; whatever they write stays where it is."""
    with (
        places.database(servers, template) as database_url,
        places.vhost(servers) as amqp_url,
        System(
            database_url,
            amqp_url,
            tmp_path_factory.mktemp("system"),
            Counts(apis=1, relays=0, workers=0),
            users_url=servers.management_url,
        ) as system,
    ):
        yield system


@pytest.fixture(params=["nginx", "api"])
def url(request: pytest.FixtureRequest, system: System) -> str:
    """The way in."""
    return system.base_url if request.param == "nginx" else system.api_urls[0]


async def post(url: str, path: str, bad: Bad) -> Answer:
    """Send exactly these bytes; whoever has heard enough may answer before it has heard all."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = [f"POST {path} HTTP/1.1", "Host: shop.example", "Connection: close", f"Content-Length: {len(bad.body)}"]
    head += [f"{name}: {value}" for name, value in bad.headers.items()]
    writer.write("\r\n".join([*head, "", ""]).encode() + bad.body)
    try:
        async with asyncio.timeout(30):
            return await read(reader)
    finally:
        writer.transport.abort()


async def read(reader: asyncio.StreamReader) -> Answer:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    if headers.get("transfer-encoding") == "chunked":
        raise AssertionError("a problem has a length")
    body = await reader.readexactly(int(headers["content-length"]))
    return Answer(int(first.split(" ")[1]), headers, body)


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES.keys())
async def test_bad_order(system: System, url: str, bad: Bad) -> None:
    """
    Every bad request gets a 4xx with a problem that names the field, if it is one field's fault, and stores nothing.
    """
    answer = await post(url, "/orders", bad)

    assert (answer.status, answer.headers["content-type"]) == (bad.status, "application/problem+json"), answer.body
    problem = json.loads(answer.body)
    assert problem["status"] == answer.status
    assert problem["type"] == "about:blank"
    assert problem["title"]
    assert problem["detail"]
    if bad.field is not None:
        assert [each["field"] for each in problem["errors"]] == [bad.field, *bad.more]
        assert all(each["detail"] for each in problem["errors"])
    async with await psycopg.AsyncConnection.connect(system.database_url) as conn:
        assert await counts(conn) == (0, 0, 0)


async def test_bad_body_of_the_tutorials_route(system: System) -> None:
    """
    The tutorial's route reads no body, but a client's that is too large is refused, and stores nothing.
    """
    answer = await post(system.base_url, "/order/place", CASES["20 MB"])

    assert (answer.status, answer.headers["content-type"]) == (413, "application/problem+json")
    async with await psycopg.AsyncConnection.connect(system.database_url) as conn:
        assert await counts(conn) == (0, 0, 0)


@pytest.mark.parametrize(
    "path",
    [
        "/orders/1", "/orders/%00", "/orders/%ff", "/orders/00000000-0000-0000-0000-000000000000",
        "/orders/' OR 1=1 --".replace(" ", "%20"), "/order/get/1", "/order/get/%F0%9F%92%A9", f"/orders/{'a' * 5000}",
        "/nothing", "/orders/1/nothing",
    ],
)  # fmt: skip
async def test_bad_path(url: str, path: str) -> None:
    """
    What is not there is 404, or 400 where it is no path at all, however strange its name.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(30):
        answer = await read(reader)
    writer.transport.abort()

    assert answer.status in {400, 404}
    assert answer.headers["content-type"] == "application/problem+json", answer.body


async def test_bad_orders_harm_no_good_one(system: System, url: str) -> None:
    """
    Beside all the bad ones at once, each good order is taken.
    """
    small = [bad for bad in CASES.values() if len(bad.body) < 1 << 20]
    good = Bad(body=order())
    several = [each for bad in small for each in (bad, good)]
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        before, _, _ = await counts(conn)
        at_once = asyncio.Semaphore(50)

        async def ask(each: Bad) -> int:
            async with at_once:
                return (await post(url, "/orders", each)).status

        statuses = await asyncio.gather(*(ask(each) for each in several))

        assert statuses[1::2] == [201] * len(small)
        assert statuses[::2] == [bad.status for bad in small]
        after, _, _ = await counts(conn)
        await conn.execute("TRUNCATE orders, outbox, idempotency_keys")
    assert after - before == len(small)
