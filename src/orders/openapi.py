"""The OpenAPI 3.1 document: written by hand where HTTP is promised, made from the structs where bodies are.

https://spec.openapis.org/oas/v3.1.0
"""

from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Response, get

from orders.api import TutorialOrder
from orders.order import Lines, NewOrder, Order, Status
from orders.problems import Problem

_Json = dict[str, Any]


class _DocumentedOrder(Order, frozen=True, kw_only=True):
    """An order."""

    lines: Lines | None  # type: ignore[assignment]  # what the raw bytes hold


class Health(msgspec.Struct, frozen=True):
    """How the service is."""

    status: str
    database: str


def document() -> _Json:
    """Return the OpenAPI document."""
    _, components = msgspec.json.schema_components(
        [NewOrder, _DocumentedOrder, TutorialOrder, Problem, Status, Health], ref_template="#/components/schemas/{name}"
    )
    components["Order"] = components.pop("_DocumentedOrder") | {"title": "Order"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Orders",
            "version": version("orders"),
            "description": "Takes orders, and sees each of them through to its end.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/orders": {"post": _place()},
            "/orders/{order_id}": {"get": _get("An order as it is now", "Order")},
            "/order/place": {
                "post": {
                    "operationId": "placeTutorialOrder",
                    "summary": "Place an order as the tutorial's clients do; a body is not read",
                    "responses": {"200": _body("The order is committed", "TutorialOrder"), **_problems(413, 503)},
                }
            },
            "/order/get/{order_id}": {"get": _get("An order as the tutorial's clients know it", "TutorialOrder")},
            "/health": {
                "get": {
                    "operationId": "health",
                    "summary": "How the service is",
                    "responses": {"200": _body("Each `healthy` or `unhealthy`", "Health")},
                }
            },
        },
        "components": {"schemas": components},
    }


def _place() -> _Json:
    return {
        "operationId": "placeOrder",
        "summary": "Place an order",
        "description": "201 means: the order and its event are committed and flushed.",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "A repeat with the same key and body gets the first answer again, never a second order",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/NewOrder"},
                    "example": {
                        "customer_id": "17850",
                        "currency": "GBP",
                        "lines": [{"sku": "85123A", "quantity": 6, "unit_price_minor": 255}],
                    },
                }
            },
        },
        "responses": {
            "201": _body("The order is committed", "Order")
            | {
                "headers": {
                    "Location": {"description": "The order's path", "schema": {"type": "string"}},
                    "Idempotency-Replayed": {
                        "description": "The key was used before: this is the first answer",
                        "schema": {"type": "string", "enum": ["true"]},
                    },
                }
            },
            **_problems(400, 413, 415, 422, 503),
        },
    }


def _get(summary: str, schema: str) -> _Json:
    return {
        "operationId": f"get{schema}",
        "summary": summary,
        "parameters": [
            {"name": "order_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
        ],
        "responses": {"200": _body(summary, schema), **_problems(404, 503)},
    }


def _body(description: str, schema: str, media_type: str = "application/json") -> _Json:
    return {
        "description": description,
        "content": {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


_PROBLEMS = {
    400: "The request is not valid; `errors` names the field",
    404: "Order not found",
    413: "The body is larger than 1 MiB",
    415: "The body is not declared as JSON",
    422: "The Idempotency-Key was used with another body, or the database refuses the order",
    503: "Too much is waiting, or the database is away",
}


def _problems(*statuses: int) -> _Json:
    answers: _Json = {}
    for status in statuses:
        answers[str(status)] = _body(_PROBLEMS[status], "Problem", "application/problem+json")
    if 503 in statuses:
        answers["503"]["headers"] = {
            "Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}}
        }
    return answers


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
