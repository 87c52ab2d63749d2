"""The OpenAPI 3.1 document: written by hand where HTTP is promised, made from the structs where bodies are.

https://spec.openapis.org/oas/v3.1.0
"""

from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Response, get

from orders.api.listing import Page, Query
from orders.api.live import HEARTBEAT_SECONDS, TICK_SECONDS
from orders.api.preconditions import LONGEST_WAIT_SECONDS
from orders.api.problems import Problem
from orders.api.routes import Health, TutorialOrder
from orders.database.orders_table import StatusNow
from orders.model.order import Lines, NewOrder, Order

_Json = dict[str, Any]

JSON = "application/json"


class _DocumentedOrder(Order, frozen=True, kw_only=True):
    """An order; the tutorial's have neither customer nor lines."""

    lines: Lines | None  # type: ignore[assignment]  # what the raw bytes hold


class _DocumentedPage(Page, frozen=True):
    """A page of a list; `next` is the cursor for `after`, or null where the list has ended."""

    orders: list[_DocumentedOrder]  # type: ignore[assignment]


EXAMPLE_ID = "019ae8a2-5f7a-7c3e-8b1d-2f60a4c1d9e7"
EXAMPLE_LINES = [{"sku": "85123A", "quantity": 6, "unit_price_minor": 255, "description": "WHITE HANGING HEART"}]
EXAMPLE_NEW = {"customer_id": "17850", "currency": "GBP", "lines": EXAMPLE_LINES, "reference": "536365"}
EXAMPLE_ORDER = {
    "order_id": EXAMPLE_ID,
    "status": "placed",
    "version": 1,
    "customer_id": "17850",
    "currency": "GBP",
    "lines": EXAMPLE_LINES,
    "total_minor": 1530,
    "reference": "536365",
    "attempts": 0,
    "failure_reason": None,
    "created_at": "2026-12-01T08:26:00.123456Z",
    "updated_at": "2026-12-01T08:26:00.123456Z",
    "finished_at": None,
}
EXAMPLE_STATUS = {
    "order_id": EXAMPLE_ID,
    "status": "processing",
    "version": 2,
    "failure_reason": None,
    "updated_at": "2026-12-01T08:26:00.223456Z",
}

_CLOSED = ("FieldProblem", "Health", "Order", "Page", "Problem", "StatusNow", "TutorialOrder")


def document() -> _Json:
    """Return the OpenAPI document."""
    _, schemas = msgspec.json.schema_components(
        [NewOrder, _DocumentedOrder, _DocumentedPage, TutorialOrder, StatusNow, Problem, Health],
        ref_template="#/components/schemas/{name}",
    )
    for name in ("Order", "Page"):
        schemas[name] = schemas.pop(f"_Documented{name}") | {"title": name}
    schemas["Page"]["properties"]["orders"]["items"] = {"$ref": "#/components/schemas/Order"}
    for name in _CLOSED:  # an answer never has more than it is said to have
        schemas[name]["additionalProperties"] = False
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Orders",
            "version": version("orders"),
            "description": (
                "Takes orders, and sees each of them through to its end.\n\n"
                "Every error is a problem document (RFC 9457). Every answer carries `X-Request-ID`: the one that the "
                "request had, if it is made of at most 128 letters, digits and `._~+/=:@-`, else a new one.\n\n"
                "HEAD answers wherever GET does, without the body.\n\n"
                "What nginx answers itself has the same form: 413, 414, 429 (with `Retry-After`), 431, 502, 504."
            ),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/orders": {"get": _list(), "post": _place()},
            "/orders/{order_id}": {"get": _get()},
            "/orders/{order_id}/cancel": {"post": _cancel()},
            "/orders/{order_id}/events": {"get": _watch()},
            "/order/place": {
                "post": {
                    "operationId": "placeTutorialOrder",
                    "summary": "Place an order as the tutorial's clients do; a body is not read",
                    "description": "Not for new clients: it honours no key, so it must not be repeated.",
                    "responses": {
                        "200": _body("The order is committed", "TutorialOrder"),
                        **_problems(401, 413, 503),
                    },
                }
            },
            "/order/get/{order_id}": {
                "get": {
                    "operationId": "getTutorialOrder",
                    "summary": "An order as the tutorial's clients know it",
                    "parameters": [_ORDER_ID],
                    "responses": {
                        "200": _body("The order as it is now", "TutorialOrder"),
                        **_problems(401, 404, 503),
                    },
                }
            },
            "/health": {
                "get": {
                    "operationId": "health",
                    "summary": "How the service is",
                    "security": [],
                    "responses": {"200": _body("Each `healthy` or `unhealthy`", "Health")},
                }
            },
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key. A client sees its own orders only, another's are not there (404).",
                }
            },
        },
        "security": [{}, {"key": []}],
    }


_REQUEST_ID = {"X-Request-ID": {"description": "The request's id", "required": True, "schema": {"type": "string"}}}
_REPLAYED = {
    "Idempotency-Replayed": {
        "description": "The key was used before: this is the first answer",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
_ETAG = {"ETag": {"description": "For If-None-Match", "required": True, "schema": {"type": "string"}}}
_ORDER_ID = {
    "name": "order_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
    "example": EXAMPLE_ID,
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A repeat with the same key and body gets the first answer again; quotes, if any, belong to the key",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]{1,255}$"},
}


def _header(name: str, description: str, example: str) -> _Json:
    return {
        "name": name,
        "in": "header",
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }


def _place() -> _Json:
    return {
        "operationId": "placeOrder",
        "summary": "Place an order",
        "description": (
            "201 means: the order and its event are committed and flushed. After a 502, a 504 or no answer at all the "
            "outcome is unknown: send the same again with the same Idempotency-Key."
        ),
        "parameters": [_KEY],
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/NewOrder"}, "example": EXAMPLE_NEW}},
        },
        "responses": {
            "201": _body(
                "The order is committed",
                "Order",
                EXAMPLE_ORDER,
                _REPLAYED
                | {"Location": {"description": "The order's path", "required": True, "schema": {"type": "string"}}},
            ),
            **_problems(400, 401, 413, 415, 422, 503),
        },
    }


def _list() -> _Json:
    schema = msgspec.json.schema(Query)["$defs"]["Query"]["properties"]
    descriptions = {
        "status": "Orders that are in this status",
        "customer_id": "Orders of this customer",
        "reference": "Orders with this reference",
        "limit": "How many at most",
        "after": "The `next` of the page before",
    }
    return {
        "operationId": "listOrders",
        "summary": "A page of orders, newest first",
        "description": (
            "New orders never shift a walk from page to page: it misses and repeats none of those that were there at "
            "its start. A page may hold fewer orders than `limit`, even none, and still have a `next`: a rare status "
            "is searched for half a second at a time. The list has ended when `next` is null."
        ),
        "parameters": [
            {
                "name": name,
                "in": "query",
                "description": description,
                "schema": schema[name],
            }
            for name, description in descriptions.items()
        ],
        "responses": {
            "200": _body("A page", "Page", {"orders": [EXAMPLE_ORDER], "next": None}),
            **_problems(400, 401, 503),
        },
    }


def _get() -> _Json:
    return {
        "operationId": "getOrder",
        "summary": "An order as it is now",
        "parameters": [
            _ORDER_ID,
            _header("If-None-Match", "ETags of the answers that the client has", '"5b1f4c0d9a3e2f7c6b8d1e0a"'),
            _header(
                "Prefer",
                f"`wait=N`: hold the answer until the status changes, for N seconds, at most {LONGEST_WAIT_SECONDS}",
                "wait=10",
            ),
        ],
        "responses": {
            "200": _body(
                "The order",
                "Order",
                EXAMPLE_ORDER,
                _ETAG | {"Preference-Applied": {"description": "wait=N", "schema": {"type": "string"}}},
            ),
            "304": {"description": "The client has this answer", "headers": _REQUEST_ID | _ETAG},
            **_problems(401, 404, 503),
        },
    }


def _cancel() -> _Json:
    cancelled = EXAMPLE_ORDER | {"status": "cancelled", "version": 2, "finished_at": EXAMPLE_STATUS["updated_at"]}
    return {
        "operationId": "cancelOrder",
        "summary": "Cancel an order that nobody works yet; a body is not read",
        "parameters": [_ORDER_ID, _KEY],
        "responses": {
            "200": _body("The order is cancelled, now or before", "Order", cancelled, _REPLAYED),
            **_problems(400, 401, 404, 409, 413, 422, 503),
        },
    }


_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "The version", "pattern": "^[0-9]+$"},
        "event": {"type": "string", "const": "message"},
        "data": {
            "type": "string",
            "contentMediaType": JSON,
            "contentSchema": {"$ref": "#/components/schemas/StatusNow"},
            "examples": [msgspec.json.encode(EXAMPLE_STATUS).decode()],
        },
    },
    "required": ["id", "data"],
}


def _watch() -> _Json:
    return {
        "operationId": "watchOrder",
        "summary": "The order's status, live",
        "description": (
            "Server-sent events: the status as it is now, then the newest whenever it has changed, until it is "
            "`done`, `failed` or `cancelled`; then the stream ends. `data` is a StatusNow, the event's id is the "
            f"version. Changes within {TICK_SECONDS * 1000:.0f} ms are told as one. A comment comes at least every "
            f"{HEARTBEAT_SECONDS:.0f} s. A stream may be cut at any time: come again with `Last-Event-ID`."
        ),
        "parameters": [_ORDER_ID, _header("Last-Event-ID", "The version that was seen last", "2")],
        "responses": {
            "200": {
                "description": "The stream",
                "headers": _REQUEST_ID,
                "content": {
                    "text/event-stream": {
                        "schema": _EVENT,  # of each event, as tools for streams read it
                    }
                },
            },
            "204": {
                "description": "The order has reached its end, and Last-Event-ID has seen it",
                "headers": _REQUEST_ID,
            },
            **_problems(401, 404, 503),
        },
    }


def _body(description: str, schema: str, example: _Json | None = None, headers: _Json | None = None) -> _Json:
    content: _Json = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    if example is not None:
        content["example"] = example
    return {"description": description, "headers": _REQUEST_ID | (headers or {}), "content": {JSON: content}}


_PROBLEMS = {
    400: "The request is not valid; `errors` names the field",
    401: "The API key is not valid, or there is none and one is required",
    404: "There is no such order, or it is another client's",
    409: "It is too late: the order is worked, or has reached another end",
    413: "The body is larger than 1 MiB",
    415: "The body is not declared as JSON",
    422: "The Idempotency-Key was used with another body, the total does not fit 64 bits, or the database refuses it",
    503: "Too much is waiting, or the database is away",
}


def _problems(*statuses: int) -> _Json:
    more: dict[int, _Json] = {
        401: {"WWW-Authenticate": {"description": "Bearer", "required": True, "schema": {"type": "string"}}},
        415: {"Accept": {"description": "What is taken", "required": True, "schema": {"type": "string"}}},
        503: {"Retry-After": {"description": "Seconds", "required": True, "schema": {"type": "integer", "minimum": 1}}},
    }
    return {
        str(status): {
            "description": _PROBLEMS[status],
            "headers": _REQUEST_ID | more.get(status, {}),
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Orders: API</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
pre{background:#f5f5f5;padding:1rem;overflow:auto}code{font-size:.9em}summary{cursor:pointer;font-weight:600}</style>
<h1>Orders: API</h1>
<p>The whole document, for your tools: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>
<div id="operations"></div>
<script>
fetch("/openapi.json").then(answer => answer.json()).then(api => {
  const place = document.getElementById("operations");
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, operation] of Object.entries(methods)) {
      const details = document.createElement("details");
      const summary = document.createElement("summary");
      summary.textContent = `${method.toUpperCase()} ${path}: ${operation.summary}`;
      const text = document.createElement("pre");
      text.textContent = JSON.stringify(operation, null, 2);
      details.append(summary, text);
      place.append(details);
    }
});
</script>
</html>
"""

_DOCUMENT = msgspec.json.encode(document())


@get("/openapi.json")
async def openapi_document() -> Response[bytes]:
    """Return the document."""
    return Response(_DOCUMENT, media_type="application/json")


@get("/docs")
async def openapi_page() -> Response[str]:
    """Return a page for the document that needs nothing from elsewhere."""
    return Response(_PAGE, media_type="text/html")


HANDLERS = [openapi_document, openapi_page]
