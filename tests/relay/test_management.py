"""The management interface, or what stands in its place."""

import asyncio
import contextlib

import pytest

from dev.sandbox.ports import free_port
from relay.management import Binding, Management, ManagementUnavailable


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Welcome to the proxy</html>",
        b'[{"source": "orders", "routing_',
        b"",
        b'{"error": "not_authorised"}',
        b'[{"source": "\xff", "routing_key": ""}]',
    ],
)
async def test_what_is_no_answer(body: bytes) -> None:
    """
    A page of something else, a body that was cut off: with status 200 too it is an interface that is away.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ManagementUnavailable, match="answers no such JSON"):
            await Management([f"http://guest:guest@127.0.0.1:{port}"], "/").bindings("orders.work")


async def test_nodes_are_asked_in_turn_and_below_their_path() -> None:
    """
    The first node hangs, the second refuses connections, the third answers, below the path that its URL names.
    """
    asked: list[bytes] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1])
        writer.write(b'HTTP/1.0 200 OK\r\n\r\n[{"source": "orders", "routing_key": "order.placed"}]')
        writer.close()

    async with (
        await asyncio.start_server(hang, "127.0.0.1", 0) as hanging,
        await asyncio.start_server(answer, "127.0.0.1", 0) as answering,
    ):
        urls = [f"http://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in (hanging, answering)]
        nodes = [urls[0], f"http://127.0.0.1:{free_port()}", f"{urls[1]}/rabbitmq/"]
        bindings = await Management(nodes, "/").bindings("orders.work")

    assert bindings == [Binding("orders", "order.placed")]
    assert asked == [b"/rabbitmq/api/queues/%2F/orders.work/bindings"]


async def test_the_first_node_is_named() -> None:
    """
    When no node answers, the complaint is about the first one.
    """
    nodes = [f"http://127.0.0.1:{free_port()}", f"http://127.0.0.2:{free_port()}"]
    with pytest.raises(ManagementUnavailable, match=r"no answer from 127\.0\.0\.1"):
        await Management(nodes, "/").queue("orders.work")


async def test_a_connection_is_kept() -> None:
    """
    Requests one after the other take one connection; one that the server has closed meanwhile, or closes at the next
    request, is replaced, and so is one whose answer came too late.
    """
    accepted: list[asyncio.StreamWriter] = []
    answer = b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n[]"
    silent = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while request := await reader.readuntil(b"\r\n\r\n"):
                assert b"Connection: keep-alive" in request
                if writer is accepted[0] and len(accepted) == 1 and b"/last/" in request:
                    break  # it closes, as after its time for a silent connection
                if not silent:
                    writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        management = Management([url], "/", keep=True)
        for _ in range(3):
            assert await management.bindings("orders.work") == []
        assert len(accepted) == 1
        assert await management.bindings("last") == []
        assert len(accepted) == 2
        accepted[1].close()
        assert await management.bindings("orders.work") == []
        assert len(accepted) == 3
        silent = True
        with pytest.raises(ManagementUnavailable, match="no answer"):
            await management.bindings("orders.work")
        silent = False
        assert await management.bindings("orders.work") == []
        assert len(accepted) == 4
        management.close()
        for writer in accepted:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
