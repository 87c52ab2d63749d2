"""The management interface, or what stands in its place."""

import asyncio

import pytest

from relay.management import Management, ManagementUnavailable


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
            await Management(f"http://guest:guest@127.0.0.1:{port}", "/").bindings("orders.work")
