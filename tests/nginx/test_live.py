"""Answers that take their time: streams of events, and `Prefer: wait`."""

import asyncio
import os
import signal

from tests.nginx.conftest import StartApi, StartNginx
from tests.nginx.proxy import eventually
from tests.nginx.upstream import Behaviour, Request, answer, hang_up

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# Ended by the connection's end. nginx passes chunks on even where it buffers; this it would hold back.
UNENDING = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def streaming(*, pieces: int, pause: float) -> Behaviour:
    """An event, then a comment after each pause."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> bool:
        writer.write(HEAD + _chunk(b"id: 1\ndata: placed\n\n"))
        await writer.drain()
        for _ in range(pieces):
            await asyncio.sleep(pause)
            writer.write(_chunk(b": still here\n\n"))
            await writer.drain()
        writer.write(_chunk(b"id: 2\ndata: done\n\n") + b"0\r\n\r\n")
        await writer.drain()
        return True

    return behave


async def murmuring(request: Request, writer: asyncio.StreamWriter) -> bool:
    """Comments for ever, without chunks."""
    writer.write(UNENDING)
    while True:
        await asyncio.sleep(0.05)
        writer.write(b": still here\n\n")
        await writer.drain()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


async def test_event_arrives_at_once(api: StartApi, nginx: StartNginx) -> None:
    """
    Each event reaches the client while the stream goes on, and the stream ends when the client leaves.
    """
    only = await api(murmuring)
    proxy = await nginx(only)

    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"GET /orders/1/events HTTP/1.1\r\nHost: a\r\nLast-Event-ID: 1\r\n\r\n")
    async with asyncio.timeout(2):
        for _ in range(3):
            await reader.readuntil(b": still here\n\n")
    writer.close()
    await writer.wait_closed()

    assert only.requests[0].all("Last-Event-ID") == ["1"]
    assert len(await proxy.log(1)) == 1


async def test_stream_outlives_other_answers(api: StartApi, nginx: StartNginx) -> None:
    """
    A stream that writes every 15 s goes on for as long as it likes (here all is 50 times faster).
    """
    proxy = await nginx(await api(streaming(pieces=5, pause=15 / 50)), times=50)

    got = await proxy.ask("GET", "/orders/1/events")

    assert got.body.count(b"still here") == 5
    assert b"data: done" in got.body


async def test_silent_stream_is_cut(api: StartApi, nginx: StartNginx) -> None:
    """
    A stream that is silent for a minute is cut, so that the client asks elsewhere (here 50 times faster).
    """
    proxy = await nginx(await api(streaming(pieces=1, pause=3600)), times=50)

    got = await proxy.ask("GET", "/orders/1/events")

    assert got.status == 200
    assert b"data: placed" in got.body
    assert b"data: done" not in got.body


async def test_stream_starts_elsewhere(api: StartApi, nginx: StartNginx) -> None:
    """
    A stream that one api does not begin is begun by the next.
    """
    proxy = await nginx(await api(hang_up), await api(streaming(pieces=0, pause=0)))

    for _ in range(4):
        assert b"data: done" in (await proxy.ask("GET", "/orders/1/events")).body


def late(seconds: float) -> Behaviour:
    async def behave(request: Request, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(seconds)
        return await answer()(request, writer)

    return behave


async def test_wait(api: StartApi, nginx: StartNginx) -> None:
    """
    `Prefer: wait` may hold an answer for 32 s, one try; without it nobody waits so long (here 20 times faster).
    """
    only = await api(late(32 / 20))
    proxy = await nginx(only, times=20)

    for prefer in ("wait=30", "respond-async, wait=30", "respond-async; x=1,WAIT = 30"):
        assert (await proxy.ask("GET", "/orders/1", [f"Prefer: {prefer}"])).status == 200
    assert len(only.requests) == 3

    for prefer in ("respond-async", "nowait=30", ""):
        assert (await proxy.ask("GET", "/orders/1", [f"Prefer: {prefer}"])).status == 504
    assert (await proxy.ask("GET", "/orders", ["Prefer: wait=30"])).status == 504


async def test_sigquit_finishes(api: StartApi, nginx: StartNginx) -> None:
    """
    SIGQUIT finishes the request in hand before nginx ends.
    """
    only = await api(late(1))
    proxy = await nginx(only)

    asked = asyncio.ensure_future(proxy.ask("POST", "/orders"))
    await eventually(lambda: len(only.requests) == 1)
    os.kill(int((proxy.folder / "nginx.pid").read_text()), signal.SIGQUIT)

    assert (await asked).status == 200
    await eventually(lambda: not (proxy.folder / "nginx.pid").exists())
