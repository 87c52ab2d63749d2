"""HEAD, on every route that has a GET: the same status and headers, and no body (RFC 9110, 9.3.2)."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[Any, Any, Any], Awaitable[None]]


def with_head(app: _App) -> _App:
    """Wrap an ASGI application that knows GET: it sees a HEAD as one, and what it says of its methods names HEAD."""

    def serve(scope: Any, receive: Any, send: _Send) -> Awaitable[None]:
        method = scope.get("method")
        if method == "HEAD":
            return app({**scope, "method": "GET"}, receive, _without_body(send))
        if method == "OPTIONS":
            return app(scope, receive, _with_allow(send))
        return app(scope, receive, send)

    return serve


def allow(methods: str) -> str:
    """Return the value of an Allow header, with HEAD where there is GET."""
    names = {name.strip() for name in methods.split(",")}
    return ", ".join(sorted(names | {"HEAD"} if "GET" in names else names))


def _without_body(send: _Send) -> _Send:
    """Send the start and an end at once: a stream sees its client leave, and ends too."""
    ended = False

    async def send_head(message: _Message) -> None:
        nonlocal ended
        if message["type"] == "http.response.start":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_head


def _with_allow(send: _Send) -> _Send:
    async def send_allow(message: _Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                (name, allow(value.decode()).encode() if name.lower() == b"allow" else value)
                for name, value in message["headers"]
            ]
        await send(message)

    return send_allow
