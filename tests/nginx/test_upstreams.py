"""The apis behind nginx: connections kept, stalled ones avoided, lost ones found again; slow clients kept away."""

import asyncio
import os
from contextlib import AsyncExitStack

from dev.sandbox import ports
from tests.nginx import upstream
from tests.nginx.conftest import StartApi, StartNginx
from tests.nginx.proxy import concurrently, eventually
from tests.nginx.upstream import answer, hang


async def test_connections_are_kept(api: StartApi, nginx: StartNginx) -> None:
    """
    A hundred requests, one after the other, need one connection for each worker of nginx at most, on every way.
    """
    only = await api(answer())
    proxy = await nginx(only)
    ways = [("GET", ""), ("POST", ""), ("POST", "Idempotency-Key: k"), ("GET", "Prefer: wait=1")]

    for _ in range(25):
        for method, header in ways:
            headers = [header] if header else []
            assert (await proxy.ask(method, "/orders/1", headers)).status == 200

    assert len(only.requests) == 100
    assert only.connections <= len(os.sched_getaffinity(0))


async def test_stalled_api_draws_no_more(api: StartApi, nginx: StartNginx) -> None:
    """
    An api that hangs holds the requests that it has, and gets no more while another is free.
    """
    stalled, well = await api(hang), await api(answer())
    proxy = await nginx(stalled, well)

    waiting: list[asyncio.Task[object]] = []
    while not stalled.requests:
        waiting.append(asyncio.ensure_future(proxy.ask("POST", "/orders")))
        await asyncio.wait(waiting, timeout=0.1)
    for _ in range(20):
        assert (await proxy.ask("POST", "/orders")).status == 200
    assert len(stalled.requests) == 1

    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_lost_api_costs_nothing(api: StartApi, nginx: StartNginx, nobody: int) -> None:
    """
    While one of two apis is gone every request is served, keyed or not; back on its port it is asked at once.
    """
    well = await api(answer())
    proxy = await nginx(nobody, well)

    answers = await concurrently(*(proxy.ask("POST", "/order/place") for _ in range(50)))
    assert {200} == {each.status for each in answers}
    assert len(well.requests) == 50


async def test_returned_api_is_asked_at_once(stack: AsyncExitStack, api: StartApi, nginx: StartNginx) -> None:
    """
    An api that comes back on its port gets its share of the next requests: a failure is not held against it.
    """
    well = await api(answer())
    port = ports.free_port()
    proxy = await nginx(port, well)
    for _ in range(10):
        assert (await proxy.ask("POST", "/orders")).status == 200

    back = await stack.enter_async_context(upstream.running(answer(), port=port))
    for _ in range(10):
        assert (await proxy.ask("POST", "/orders")).status == 200

    assert 3 <= len(back.requests) <= 7


async def test_slow_body(api: StartApi, nginx: StartNginx) -> None:
    """
    A client that stops in the middle of its body is cut off, and no api ever hears of it.
    """
    only = await api(answer())
    proxy = await nginx(only, times=20)

    got = await proxy.say(b"POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nonly this")

    assert got.status == 0
    assert (await proxy.log(1))[0]["status"] == 408
    assert only.requests == []


async def test_slow_header(api: StartApi, nginx: StartNginx) -> None:
    """
    A client that does not finish its header is cut off.
    """
    only = await api(answer())
    proxy = await nginx(only, times=20)

    assert (await proxy.say(b"POST /orders HTTP/1.1\r\nHost: a\r\n")).status == 0
    assert only.requests == []


async def test_slow_reader(api: StartApi, nginx: StartNginx) -> None:
    """
    A long answer is passed on without a file: nginx's folders stay empty.
    """
    body = b"x" * 30_000_000
    only = await api(answer(200, body))
    proxy = await nginx(only)

    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=1024)
    writer.write(b"GET /orders HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    await eventually(lambda: len(only.requests) == 1)
    await reader.readline()
    files = [path for folder in ("proxy", "body") for path in (proxy.folder / folder).rglob("*") if path.is_file()]
    assert files == []
    got = await reader.read()

    assert got.endswith(body[-1000:])
    assert len(got) > len(body)
    writer.close()
    await writer.wait_closed()
