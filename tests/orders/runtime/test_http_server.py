"""What the HTTP server asks of the system, and what becomes of who came just before its end."""

import resource
import socket

from orders.runtime import http_server
from tests.orders.conftest import Api


def test_every_descriptor_that_there_is() -> None:
    """
    A soft limit that somebody left low does not limit the streams.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        http_server.take_all_descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
