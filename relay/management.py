"""RabbitMQ's management interface, read for what AMQP does not show: bindings and policies."""

import asyncio
import base64
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

T = TypeVar("T")

SECONDS = 1.0  # a claim is open meanwhile, with the rows of other routes in it


class ManagementUnavailable(Exception):
    """The management interface did not answer as expected."""


class Binding(msgspec.Struct, frozen=True):
    """From which exchange a queue gets messages, and which."""

    source: str
    routing_key: str


class Management:
    """A few questions to one vhost; the URL carries user and password."""

    def __init__(self, url: str, vhost: str) -> None:
        self._url = urlsplit(url)
        self._vhost = quote(vhost, safe="")

    async def queue(self, name: str) -> dict[str, Any]:
        """Return the queue with its arguments and the policy in effect."""
        return await self._get(f"/api/queues/{self._vhost}/{quote(name, safe='')}", dict[str, Any])

    async def bindings(self, name: str) -> list[Binding]:
        """Return the queue's bindings."""
        return await self._get(f"/api/queues/{self._vhost}/{quote(name, safe='')}/bindings", list[Binding])

    async def _get(self, path: str, kind: type[T]) -> T:
        user, password = unquote(self._url.username or "guest"), unquote(self._url.password or "guest")
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        host = self._url.hostname or ""
        try:
            async with asyncio.timeout(SECONDS):
                reader, writer = await asyncio.open_connection(
                    host, self._url.port or 15672, ssl=True if self._url.scheme == "https" else None
                )
                try:
                    # HTTP/1.0: the answer ends with the connection, so that there are no chunks to read.
                    writer.write(
                        f"GET {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Basic {credentials}\r\n\r\n".encode()
                    )
                    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise ManagementUnavailable(f"RELAY_MANAGEMENT_URL: no answer from {host} ({error!r})") from error
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if " 200 " not in f"{status} ":
            raise ManagementUnavailable(f"RELAY_MANAGEMENT_URL: {path} answers {status!r}")
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            # Cut off, or another's page: a proxy in between answers with 200, too.
            raise ManagementUnavailable(f"RELAY_MANAGEMENT_URL: {path} answers no such JSON ({error})") from error
