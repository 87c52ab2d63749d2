"""The name of a request, from whoever sent it to every line and answer about it: X-Request-ID."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from orders.model.ids import random_bytes
from orders.runtime.process import REQUEST_ID

# Harmless in a header, a log line and a JSON string; nginx has the same rule.
_VALID = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}").fullmatch

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[Any, Any, Any], Awaitable[None]]


def named(app: _App) -> _App:
    """Wrap an ASGI application: every request in it has an id, and every answer carries it.

    Each request is a task with a context of its own, so nothing has to be put back afterwards.
    """

    def with_request_id(scope: Any, receive: Any, send: _Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return app(scope, receive, send)
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _VALID(value):
                request_id = value
                break
        else:
            request_id = random_bytes(16).hex().encode()
        REQUEST_ID.set(request_id.decode())

        def send_with_id(message: _Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            return send(message)

        return app(scope, receive, send_with_id)

    return with_request_id
