"""nginx's own errors are problems of RFC 9457; the api's pass untouched."""

import pytest

from tests.nginx.conftest import StartApi, StartNginx
from tests.nginx.upstream import answer

HOST = b"Host: shop.example\r\n"

BAD = [
    pytest.param(400, b"GARBAGE\r\n\r\n", id="no request at all"),
    pytest.param(400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
    pytest.param(400, b"GET /orders HTTP/1.1\r\n\r\n", id="no host"),
    pytest.param(400, b"GET /orders HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", id="two hosts"),
    pytest.param(400, b"GET /or\x00ders HTTP/1.1\r\n" + HOST + b"\r\n", id="NUL in the path"),
    pytest.param(400, b"GET /orders%00 HTTP/1.1\r\n" + HOST + b"\r\n", id="an encoded NUL in the path"),
    pytest.param(400, b"GET /../orders HTTP/1.1\r\n" + HOST + b"\r\n", id="above the root"),
    pytest.param(400, b"POST /orders HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", id="a negative length"),
    pytest.param(
        400,
        b"POST /orders HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        id="two lengths",
    ),
    pytest.param(
        400, b"POST /orders HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", id="a broken chunk"
    ),
    pytest.param(404, b"GET /health/live HTTP/1.0\r\n\r\n", id="HTTP/1.0"),
    pytest.param(405, b"TRACE /orders HTTP/1.1\r\n" + HOST + b"\r\n", id="TRACE"),
    pytest.param(405, b"CONNECT /orders HTTP/1.1\r\n" + HOST + b"\r\n", id="CONNECT"),
    pytest.param(
        413,
        b"POST /orders HTTP/1.1\r\n" + HOST + b"Content-Length: 1048577\r\n\r\n" + b"x" * 1048577,
        id="a declared body that is too large",
    ),
    pytest.param(
        413,
        b"POST /orders HTTP/1.1\r\n"
        + HOST
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + 17 * (b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        id="a chunked body that is too large",
    ),
    pytest.param(414, b"GET /orders?reference=" + b"x" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", id="a long line"),
    pytest.param(431, b"GET /orders HTTP/1.1\r\n" + HOST + b"X-A: " + b"x" * 9000 + b"\r\n\r\n", id="a long header"),
    pytest.param(
        431,
        b"GET /orders HTTP/1.1\r\n"
        + HOST
        + b"".join(b"X-%d: " % n + b"x" * 4000 + b"\r\n" for n in range(10))
        + b"\r\n",
        id="long headers together",
    ),
    pytest.param(
        501, b"POST /orders HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", id="another transfer encoding"
    ),
    pytest.param(505, b"GET /orders HTTP/3.0\r\n" + HOST + b"\r\n", id="another HTTP"),
]


@pytest.mark.parametrize(("status", "raw"), BAD)
async def test_refused_by_nginx(api: StartApi, nginx: StartNginx, status: int, raw: bytes) -> None:
    """
    What nginx refuses gets a problem with the right status, and no api hears of it.
    """
    untouched = await api(answer())
    proxy = await nginx(untouched)

    got = await proxy.say(raw if b"chunked" in raw else raw.replace(HOST, HOST + b"Connection: close\r\n"))

    assert status == got.status
    got.problem()
    assert got.all("Retry-After") == []
    assert untouched.requests == []


async def test_method_not_allowed(api: StartApi, nginx: StartNginx) -> None:
    """
    A 405 says what is allowed.
    """
    proxy = await nginx(await api(answer()))

    assert (await proxy.ask("TRACE", "/orders")).all("Allow") == ["GET, HEAD, POST, OPTIONS"]


async def test_largest_body(api: StartApi, nginx: StartNginx) -> None:
    """
    A body of exactly 1 MiB reaches the api, declared or in chunks, byte for byte.
    """
    only = await api(answer())
    proxy = await nginx(only)
    body = bytes(range(256)) * 4096

    assert (await proxy.ask("POST", "/orders", [], body)).status == 200
    chunks = b"100000\r\n" + body + b"\r\n0\r\n\r\n"
    head = b"POST /orders HTTP/1.1\r\n" + HOST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (await proxy.say(head + chunks)).status == 200

    assert [body, body] == [request.body for request in only.requests]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_api(nginx: StartNginx, nobody: int, method: str) -> None:
    """
    With every api gone nginx answers 502, without a Retry-After.
    """
    proxy = await nginx(nobody)

    got = await proxy.ask(method, "/orders")

    assert got.status == 502
    assert got.problem()["title"] == "Bad Gateway"
    assert got.all("Retry-After") == []


@pytest.mark.parametrize(("status", "retry_after"), [(503, ["1"]), (429, ["1"]), (500, [])])
async def test_retry_after(api: StartApi, nginx: StartNginx, status: int, retry_after: list[str]) -> None:
    """
    An error that nginx may give for a while says when to come back.
    """
    proxy = await nginx(await api(answer()), extra=f"location = /closed {{ return {status}; }}")

    got = await proxy.ask("GET", "/closed")

    assert status == got.status
    assert retry_after == got.all("Retry-After")
    got.problem()


async def test_head(nginx: StartNginx, nobody: int) -> None:
    """
    A HEAD gets the problem's header alone.
    """
    proxy = await nginx(nobody)

    got = await proxy.ask("HEAD", "/orders")

    assert (got.status, got.body) == (502, b"")
    assert got.all("Content-Type") == ["application/problem+json"]


@pytest.mark.parametrize("status", [400, 401, 404, 405, 409, 413, 415, 422, 429, 500, 502, 503, 504])
async def test_api_problem_passes(api: StartApi, nginx: StartNginx, status: int) -> None:
    """
    An api's own problem reaches the client byte for byte, its headers too.
    """
    body = b'{"type":"about:blank","title":"the api\'s own","status":%d}' % status
    headers = {"Content-Type": "application/problem+json", "Retry-After": "7", "ETag": '"3"', "Location": "/orders/1"}
    proxy = await nginx(await api(answer(status, body, headers)))

    for method in ("GET", "POST"):
        got = await proxy.ask(method, "/orders")
        assert (status, body) == (got.status, got.body)
        for name, value in headers.items():
            assert [value] == got.all(name)
