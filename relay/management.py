"""Reads from RabbitMQ's management interface what AMQP does not show: bindings and policies."""

import asyncio
import base64
import contextlib
from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec

T = TypeVar("T")

SECONDS = 1.0  # the limit of a request: a claim is open meanwhile, with rows of other routes in it
HEAD_START_SECONDS = 0.3  # of each node before the next one is asked


class ManagementUnavailable(Exception):
    """The management interface did not answer as expected."""


class Binding(msgspec.Struct, frozen=True):
    """A binding of a queue: messages of the exchange `source` with this routing key (a pattern) reach the queue."""

    source: str
    routing_key: str


class _Destination(msgspec.Struct, frozen=True):
    destination: str
    destination_type: str


class Management:
    """A client for one vhost. Each URL carries user and password, and the path below which the interface lies.

    Its methods raise ManagementUnavailable if no URL answers.
    """

    def __init__(self, urls: Sequence[str], vhost: str) -> None:
        self._urls = [urlsplit(url) for url in urls]
        self._vhost = quote(vhost, safe="")

    async def queue(self, name: str) -> dict[str, Any]:
        """Return the queue with its arguments and the policy in effect."""
        return await self._get(f"/api/queues/{self._vhost}/{quote(name, safe='')}", dict[str, Any])

    async def bindings(self, name: str) -> list[Binding]:
        """Return the queue's bindings."""
        return await self._get(f"/api/queues/{self._vhost}/{quote(name, safe='')}/bindings", list[Binding])

    async def destinations(self, exchange: str) -> list[str]:
        """Return the names of the queues that are bound to an exchange."""
        path = f"/api/exchanges/{self._vhost}/{quote(exchange, safe='')}/bindings/source"
        found = await self._get(path, list[_Destination])
        return [item.destination for item in found if item.destination_type == "queue"]

    async def _get(self, path: str, kind: type[T]) -> T:
        """Return the first answer of a node; if no node answers, raise the error of the first one."""

        async def ask(number: int, url: SplitResult) -> T:
            await asyncio.sleep(number * HEAD_START_SECONDS)
            return await _ask(url, path, kind)

        attempts = [asyncio.create_task(ask(*item), name="relay-management") for item in enumerate(self._urls)]
        try:
            for attempt in asyncio.as_completed(attempts):
                with contextlib.suppress(ManagementUnavailable):
                    return await attempt
            return attempts[0].result()
        finally:
            for attempt in attempts:
                attempt.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)


async def _ask(url: SplitResult, path: str, kind: type[T]) -> T:
    user, password = unquote(url.username or "guest"), unquote(url.password or "guest")
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    host = url.hostname or ""
    is_https = url.scheme == "https"
    path = url.path.rstrip("/") + path
    try:
        async with asyncio.timeout(SECONDS):
            port = url.port or (443 if is_https else 15672)
            reader, writer = await asyncio.open_connection(host, port, ssl=True if is_https else None)
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
        # Cut off, or the page of a proxy in between, which answers with 200, too.
        raise ManagementUnavailable(f"RELAY_MANAGEMENT_URL: {path} answers no such JSON ({error})") from error
