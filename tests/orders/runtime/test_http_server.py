"""Connections that come just before the server's end are served; an answer is one write."""

import asyncio
import inspect
import socket
from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from orders.runtime.http_server import HttpServer, OneWrite, Protocol
from tests.orders.conftest import Api


async def test_who_connected_before_the_end_is_served(api: Api) -> None:
    """
    A connection that the kernel has taken, and the server not yet, is served when the server stops at that moment.
    """
    url = api.client.base_url
    with socket.create_connection((url.host, url.port)) as late:  # blocks the loop: nobody accepts
        late.sendall(b"POST /order/place HTTP/1.1\r\nHost: orders\r\n\r\n")
        await api.server.shutdown()
        late.settimeout(10)
        assert late.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("theirs", "ours", "names"),
    [
        (uvicorn.Server, HttpServer, ["capture_signals", "main_loop", "shutdown"]),
        (HttpToolsProtocol, Protocol, ["connection_made", "send_400_response"]),
    ],
)
def test_uvicorn_has_the_methods_that_are_overridden(theirs: type, ours: type, names: list[str]) -> None:
    """
    What is overridden is there in the installed uvicorn, with the same parameters, and is called by it.
    """
    overridden = [name for name in vars(ours) if name in vars(theirs) and not name.startswith("__")]

    assert sorted(overridden) == names
    for name in names:
        assert list(inspect.signature(getattr(ours, name)).parameters) == list(
            inspect.signature(getattr(theirs, name)).parameters
        )


@pytest.fixture
def sent() -> list[bytes]:
    """What a transport was given to write, call by call."""
    return []


@pytest.fixture
async def transport(sent: list[bytes]) -> OneWrite:
    """A transport before one that only remembers."""
    return OneWrite(SimpleNamespace(write=sent.append, close=lambda: sent.append(b"closed")))  # type: ignore[arg-type]


HEADERS = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"


async def test_headers_leave_with_their_body(transport: OneWrite, sent: list[bytes]) -> None:
    """
    Headers and the body that follows are one write; what follows that is another.
    """
    transport.write(HEADERS)
    transport.write(b"x")
    transport.write(b"y")
    await asyncio.sleep(0)

    assert sent == [HEADERS + b"x", b"y"]


async def test_headers_do_not_wait_for_a_late_body(transport: OneWrite, sent: list[bytes]) -> None:
    """
    Headers whose body does not follow at once leave when the loop turns, or when the connection closes.
    """
    transport.write(HEADERS)
    await asyncio.sleep(0)
    assert sent == [HEADERS]

    transport.write(HEADERS)
    transport.close()
    assert sent == [HEADERS, HEADERS, b"closed"]
