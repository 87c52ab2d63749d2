"""Connections that come just before the server's end are served."""

import socket

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
