"""Health, status and metrics over HTTP: four paths, which need no framework."""

import asyncio
import contextlib
from typing import NamedTuple

import msgspec
from prometheus_client.exposition import choose_encoder

from relay.state import RelayState

REQUEST_SECONDS = 5.0
REQUEST_BYTES = 16 * 1024
JSON = "application/json"
PHRASES = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Response(NamedTuple):
    """The answer to one request."""

    status: int
    content_type: str
    body: bytes


def respond(state: RelayState, method: str, path: str, accept: str = "") -> Response:
    """Return the response to a request; `path` may have a query, which is ignored. `accept`: that header."""
    if method not in ("GET", "HEAD"):
        return Response(405, JSON, msgspec.json.encode({"error": "only GET"}))
    match path.partition("?")[0]:
        case "/health/live":
            return Response(200 if state.is_live else 503, JSON, msgspec.json.encode({"live": state.is_live}))
        case "/health/ready":
            readiness = {"ready": state.is_ready, "broker": state.broker, "database": state.database}
            return Response(200 if state.is_ready else 503, JSON, msgspec.json.encode(readiness))
        case "/status":
            return Response(200, JSON, msgspec.json.encode(state.status()))
        case "/metrics":
            encode, content_type = choose_encoder(accept)
            return Response(200, content_type, encode(state.registry))
        case _:
            paths = "/health/live, /health/ready, /status or /metrics"
            return Response(404, JSON, msgspec.json.encode({"error": f"try {paths}"}))


def header(lines: list[str], name: str) -> str:
    """Return the values of a header, joined by commas; "" without one. `name` is in lower case."""
    pairs = (line.partition(":") for line in lines)
    return ",".join(value.strip() for key, _, value in pairs if key.strip().lower() == name)


async def serve(state: RelayState, host: str, port: int) -> asyncio.Server:
    """Listen on `host` and `port` (0: any free port); each connection gets one response. Raises OSError."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                words = lines[0].split(" ")
                if len(words) == 3:
                    status, kind, body = respond(state, words[0], words[1], header(lines[1:], "accept"))
                else:
                    status, kind, body = 400, JSON, b'{"error":"not a request"}'
                length = len(body)
                if words[0] == "HEAD":
                    body = b""
                writer.write(
                    f"HTTP/1.1 {status} {PHRASES[status]}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n"
                    "cache-control: no-store\r\nconnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    return await asyncio.start_server(answer, host, port, limit=REQUEST_BYTES)
