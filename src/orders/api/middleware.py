"""ASGI middleware around the application: HEAD on every route that has a GET, and a request id on every answer.

HEAD is defined in RFC 9110, section 9.3.2. Functions and closures instead of classes: both run on every placement.
"""

import re
from collections.abc import Awaitable
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from orders.model.ids import random_bytes
from orders.runtime.process import REQUEST_ID

# Harmless in a header, a log line and a JSON string. nginx applies the same rule.
_VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}").fullmatch


def with_request_id(app: ASGIApp) -> ASGIApp:
    """Return `app` with an id for each HTTP request, which every answer carries as X-Request-ID.

    The id is the client's X-Request-ID if that is valid, else 32 random hexadecimal digits. The context variable
    REQUEST_ID holds it for log lines and problem documents. uvicorn serves each request in a task with a context of
    its own, and therefore nothing resets the variable afterwards.
    """

    def serve(scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return app(scope, receive, send)
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _VALID_REQUEST_ID(value):
                request_id = value
                break
        else:
            request_id = random_bytes(16).hex().encode()
        REQUEST_ID.set(request_id.decode())

        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            return send(message)

        return app(scope, receive, send_with_id)

    return serve


def with_head(app: ASGIApp) -> ASGIApp:
    """Return `app`, which handles GET, with HEAD added: it sees a HEAD as a GET, and its Allow headers name HEAD.

    The answer to a HEAD has the status and headers of the GET and an empty body.
    """

    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        method = scope.get("method")
        if method == "HEAD":
            as_get: Any = {**scope, "method": "GET"}
            return app(as_get, receive, _without_body(send))
        if method == "OPTIONS":
            return app(scope, receive, _with_allow(send))
        return app(scope, receive, send)

    return serve


def allow(methods: str) -> str:
    """Return the value of an Allow header for comma-separated `methods`: sorted, with HEAD where there is GET."""
    names = {name.strip() for name in methods.split(",")}
    return ", ".join(sorted(names | {"HEAD"} if "GET" in names else names))


def _without_body(send: Send) -> Send:
    """Send the start and an end at once: a stream then sees its client leave, and ends too."""
    ended = False

    async def send_head(message: Message) -> None:
        nonlocal ended
        if message["type"] == "http.response.start":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_head


def _with_allow(send: Send) -> Send:
    async def send_allow(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                (name, allow(value.decode()).encode() if name.lower() == b"allow" else value)
                for name, value in message["headers"]
            ]
        await send(message)

    return send_allow
