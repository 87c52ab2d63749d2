"""One JSON object for each request."""

import asyncio

from tests.nginx.conftest import StartApi, StartNginx
from tests.nginx.proxy import concurrently
from tests.nginx.upstream import answer, first_then, hang_up


async def test_line(api: StartApi, nginx: StartNginx) -> None:
    """
    A line tells who asked what, what came of it, how long it took and which api answered.
    """
    only = await api(answer(201, b"{}"))
    proxy = await nginx(only)

    await proxy.ask("POST", "/orders?x=1", ["X-Request-ID: mine", "Idempotency-Key: k", "Authorization: Bearer s3cret"])

    (line,) = await proxy.log(1)
    assert {
        "request_id": "mine",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/orders",
        "key_id": "",
        "status": 201,
        "way": "/.repeat",
        "api": only.address,
        "api_status": "201",
    }.items() <= line.items()
    assert 0 <= float(line["api_seconds"]) <= line["seconds"] + 0.002 < 5
    assert "s3cret" not in str(line)


async def test_the_key_is_named_by_its_id(api: StartApi, nginx: StartNginx) -> None:
    """
    A line has the id of the API key and the path; neither the key nor what was searched for is in any log.
    """
    proxy = await nginx(await api(answer()), rate_limit=1)
    key = ["Authorization: bearer orders_0123456789ab_" + "s3cret_" * 6 + "-"]

    await concurrently(*(proxy.ask("GET", "/orders?customer_id=somebody", key) for _ in range(20)))

    lines = await proxy.log(20)
    assert {("0123456789ab", "/orders")} == {(line["key_id"], line["path"]) for line in lines}
    assert 429 in {line["status"] for line in lines}
    for log in proxy.folder.glob("*log*"):
        assert not any(secret in log.read_text() for secret in ("s3cret", "somebody")), log


async def test_both_apis(api: StartApi, nginx: StartNginx) -> None:
    """
    A repeated request shows every api that it was sent to.
    """
    behaviour = first_then(hang_up, answer())
    apis = [await api(behaviour), await api(behaviour)]
    proxy = await nginx(*apis)

    await proxy.ask("POST", "/orders", ["Idempotency-Key: k"])

    (line,) = await proxy.log(1)
    assert {each.address for each in apis} == set(line["api"].split(", "))
    assert line["api_status"] == "502, 200"


async def test_own_errors(nginx: StartNginx, nobody: int) -> None:
    """
    A failed POST is logged as a POST, with the id that its problem names; a request that was none is logged too.
    """
    proxy = await nginx(nobody)

    failed = await proxy.ask("POST", "/order/place")
    garbage = await proxy.say(b"GARBAGE\r\n\r\n")
    long = await proxy.say(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n")

    by_id = {line["request_id"]: line for line in await proxy.log(3)}
    assert _what(by_id[failed.problem()["request_id"]]) == ("POST", "/order/place", 502)
    assert by_id[garbage.problem()["request_id"]]["status"] == 400
    assert by_id[long.problem()["request_id"]]["status"] == 414


def _what(line: dict[str, object]) -> tuple[object, object, object]:
    return line["method"], line["path"], line["status"]


async def test_hostile_bytes(api: StartApi, nginx: StartNginx) -> None:
    """
    Whatever a client sends, the line is JSON: quotes, backslashes, control characters, a line cut short.
    """
    proxy = await nginx(await api(answer()))

    await proxy.ask("GET", '/orders?"\\', ['User-Agent: "\\\t\x01\x7f'])
    for cut_short in (b"", b"GET /ord", b"POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"):
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(cut_short)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    await proxy.ask("GET", "/last")

    lines = await proxy.log(4)
    assert "/last" in [line["path"] for line in lines]
    assert all(isinstance(line["status"], int) for line in lines)
