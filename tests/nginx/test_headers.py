"""What nginx adds to a request and to an answer."""

import asyncio

import pytest

from dev.sandbox.nginx import RULES
from tests.nginx.conftest import StartApi, StartNginx
from tests.nginx.proxy import eventually
from tests.nginx.upstream import answer, hang

WAYS = [
    pytest.param("POST", "/orders?reference=BANK%20CHARGES&x=%2F%3f", [], id="once"),
    pytest.param("GET", "/orders?reference=BANK%20CHARGES&x=%2F%3f", [], id="repeat"),
    pytest.param("POST", "/orders?x=%2F", ["Idempotency-Key: k"], id="repeat with a key"),
    pytest.param("GET", "/orders/1?x=%2F", ["Prefer: respond-async, wait=5"], id="wait"),
    pytest.param("GET", "/orders/1/events?x=%2F", [], id="stream"),
]


@pytest.mark.parametrize(("method", "target", "headers"), WAYS)
async def test_forwarded(api: StartApi, nginx: StartNginx, method: str, target: str, headers: list[str]) -> None:
    """
    On every way the api gets the request as the client wrote it, and learns who asked.
    """
    only = await api(answer())
    proxy = await nginx(only)
    sent = [*headers, "Authorization: Bearer s3cret", "traceparent: 00-1-2-01", "Accept: text/event-stream"]

    assert (await proxy.ask(method, target, sent)).status == 200

    request = only.requests[0]
    assert (method, target, "HTTP/1.1") == (request.method, request.target, request.version)
    for line in sent:
        name, _, value = line.partition(": ")
        assert [value] == request.all(name)
    assert ["shop.example:8080"] == request.all("Host") == request.all("X-Forwarded-Host")
    assert request.all("X-Forwarded-For") == ["127.0.0.1"]
    assert request.all("X-Forwarded-Proto") == ["http"]
    assert request.all("Connection") == []


async def test_claims_are_overwritten(api: StartApi, nginx: StartNginx) -> None:
    """
    A client cannot say where it comes from.
    """
    only = await api(answer())
    proxy = await nginx(only)

    await proxy.ask(
        "GET",
        "/orders",
        ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "Forwarded: for=10.0.0.1"],
    )

    request = only.requests[0]
    assert request.all("X-Forwarded-For") == ["127.0.0.1"]
    assert request.all("X-Forwarded-Proto") == ["http"]
    assert request.all("X-Forwarded-Host") == ["shop.example:8080"]
    assert request.all("Forwarded") == []


@pytest.mark.parametrize(("method", "target", "headers"), WAYS)
async def test_request_id_is_made(
    api: StartApi, nginx: StartNginx, method: str, target: str, headers: list[str]
) -> None:
    """
    A request without an id gets one: the same for the api and on the answer, another for each request.
    """
    only = await api(answer())
    proxy = await nginx(only)

    answers = [await proxy.ask(method, target, headers) for _ in range(2)]

    seen = [request.all("X-Request-ID") for request in only.requests]
    assert seen == [each.all("X-Request-ID") for each in answers]
    assert len({each for (each,) in seen}) == 2


@pytest.mark.parametrize("name", ["a", "0af7651916cd43dd8448eb211c80319c", "A-z_0.9~x+y/z=:@", "x" * 128])
async def test_request_id_is_kept(api: StartApi, nginx: StartNginx, name: str) -> None:
    """
    A client's own id goes to the api, and comes back once, whether or not the api sends it back too.
    """
    echoing = await api(answer(200, b"{}", {"X-Request-ID": name}))
    proxy = await nginx(echoing)

    for target in ("/orders", "/metrics"):
        assert [name] == (await proxy.ask("GET", target, [f"X-Request-ID: {name}"])).all("X-Request-ID")
    assert [name] == echoing.requests[0].all("X-Request-ID")


@pytest.mark.parametrize("name", ["", "two words", 'quo"te', "back\\slash", "semi;colon", "gr\xfcn", "x" * 129, "{}"])
async def test_request_id_is_refused(api: StartApi, nginx: StartNginx, name: str) -> None:
    """
    A client's id that would not be harmless in a log line is replaced, everywhere.
    """
    only = await api(answer())
    proxy = await nginx(only)

    passed = await proxy.ask("GET", "/orders", [f"X-Request-ID: {name}"])
    own = await proxy.ask("GET", "/metrics", [f"X-Request-ID: {name}"])

    (made,) = only.requests[0].all("X-Request-ID")
    assert [made] == passed.all("X-Request-ID")
    assert len(made) == 32
    assert name != own.problem()["request_id"]


async def test_http_1_0(api: StartApi, nginx: StartNginx) -> None:
    """
    A client of HTTP/1.0 without a Host is served, and the api gets a Host.
    """
    only = await api(answer())
    proxy = await nginx(only)

    assert (await proxy.say(b"GET /orders HTTP/1.0\r\n\r\n")).status == 200
    assert len(only.requests[0].all("Host")) == 1


async def test_no_version(api: StartApi, nginx: StartNginx) -> None:
    """
    Neither nginx's version nor the api's server is told.
    """
    proxy = await nginx(await api(answer(200, b"{}", {"Server": "uvicorn/0.54"})))

    for target in ("/orders", "/metrics"):
        assert (await proxy.ask("GET", target)).all("Server") == ["nginx"]


async def test_bytes_as_they_are(api: StartApi, nginx: StartNginx) -> None:
    """
    An answer is neither compressed nor is its ETag weakened.
    """
    body = b'{"orders":[' + b" " * 200_000 + b"]}"
    proxy = await nginx(await api(answer(200, body, {"ETag": '"7"'})))

    got = await proxy.ask("GET", "/orders", ["Accept-Encoding: gzip"])

    assert body == got.body
    assert got.all("ETag") == ['"7"']
    assert got.all("Content-Encoding") == []


@pytest.mark.parametrize("target", ["/orders", "/metrics"])
async def test_data_is_no_page(api: StartApi, nginx: StartNginx, target: str) -> None:
    """
    Answers of the api and of nginx itself are never sniffed, framed, run or stored.
    """
    proxy = await nginx(await api(answer()))

    got = await proxy.ask("GET", target)

    assert got.all("X-Content-Type-Options") == ["nosniff"]
    assert got.all("Content-Security-Policy") == ["default-src 'none'; frame-ancestors 'none'"]
    assert got.all("Cache-Control") == ["no-store"]


async def test_the_apis_own_policy_stands_alone(api: StartApi, nginx: StartNginx) -> None:
    """
    A policy or a cache rule that the api sent passes, and nothing is added to it.
    """
    own = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "max-age=60"}
    proxy = await nginx(await api(answer(200, b"{}", own)))

    got = await proxy.ask("GET", "/docs")

    assert [own[name] for name in own] == [*got.all("Content-Security-Policy"), *got.all("Cache-Control")]


async def test_one_address_in_hand(api: StartApi, nginx: StartNginx) -> None:
    """
    Beyond its requests in hand an address gets a 429, whatever keys it shows.
    """
    assert "limit_conn orders_in_hand 1500;" in (RULES / "orders.conf").read_text()
    only = await api(hang)
    proxy = await nginx(only, extra="limit_conn orders_in_hand 3;")
    hanging = [
        asyncio.create_task(proxy.ask("GET", "/orders/1/events", [f"Authorization: Bearer {number}"]))
        for number in range(3)
    ]
    try:
        await eventually(lambda: len(only.requests) == 3)
        assert (await proxy.ask("GET", "/orders")).problem()["status"] == 429
    finally:
        for each in hanging:
            each.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
