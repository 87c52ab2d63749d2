"""A wire does to the bytes what it was told, and is an ordinary wire again when it is mended."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dev.sandbox.wire import LinkConditions, Wire
from tests.eventually import eventually


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    """A wire to a server that echoes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Wire("127.0.0.1", server.sockets[0].getsockname()[1]) as opened:
        yield opened


async def test_it_carries(wire: Wire) -> None:
    """
    Without conditions it is a wire.
    """
    assert await say(wire, b"hello") == b"hello"


@pytest.mark.parametrize(
    "conditions",
    [LinkConditions(delay=0.01, jitter=0.01), LinkConditions(bytes_per_second=50_000), LinkConditions(pieces_of=7)],
)
async def test_conditions_change_no_byte(wire: Wire, conditions: LinkConditions) -> None:
    """
    Slow, narrow or sliced: what arrives is what was sent.
    """
    wire.apply(conditions)
    data = bytes(range(256)) * 4

    assert data == await say(wire, data)


async def test_a_cut_refuses_new_connections_until_it_is_mended(wire: Wire) -> None:
    """
    Who is connected is reset, who comes is too.
    """
    wire.cut()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await say(wire, b"hello")

    wire.mend()
    assert await say(wire, b"hello") == b"hello"


async def test_silence_keeps_what_was_said(wire: Wire) -> None:
    """
    It arrives when the silence is over.
    """
    wire.silence()
    saying = asyncio.create_task(say(wire, b"hello"), name="say")
    await eventually(lambda: wire.accepted == 1)
    assert not saying.done()
    wire.resume()

    assert await saying == b"hello"


async def test_an_answer_is_swallowed_once(wire: Wire) -> None:
    """
    The connection goes with it; the next answer arrives.
    """
    wire.swallow(b"COMMIT")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await say(wire, b"COMMIT")

    assert wire.swallowed == 1
    assert await say(wire, b"COMMIT") == b"COMMIT"


async def test_a_cut_after_some_bytes(wire: Wire) -> None:
    """
    So many arrive, and not one more.
    """
    wire.cut_after("back", 3)
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.write(b"hello")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(5)
    writer.close()

    assert await say(wire, b"hello") == b"hello"


async def say(wire: Wire, data: bytes) -> bytes:
    """Say it over the wire, and return as much as was said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.readexactly(len(data))
    finally:
        writer.close()
