"""The OpenAPI 3.1 document at `/openapi.json`, and a page that shows it at `/docs`.

`openapi.json` beside this module has the routes, parameters and answers, edited by hand; the structs give the schemas
of the bodies. Its references to shared parameters, headers and answers are replaced by their targets, to let a reader
of one operation see all of it. `openapi.html` is the page.

https://spec.openapis.org/oas/v3.1.0
"""

import re
from base64 import b64encode
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from litestar import Response, get

from orders.api.batch import BatchAnswer, BatchLine
from orders.api.health import Health
from orders.api.listing import Page
from orders.api.problems import Problem
from orders.api.routes import TutorialOrder
from orders.database.orders_table import StatusNow
from orders.model.order import Lines, NewOrder, Order

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/"


class _DocumentedOrder(Order, frozen=True, kw_only=True):
    """An order; the tutorial's have neither customer nor lines."""

    lines: Lines | None  # type: ignore[assignment]  # an Order holds their JSON


class _DocumentedAnswer(BatchAnswer, frozen=True, kw_only=True):
    """The answer to a line of a batch: the order of a 201, or the problem of any other status."""

    order: _DocumentedOrder | None = None  # type: ignore[assignment]  # a BatchAnswer holds its JSON


class _DocumentedPage(Page, frozen=True):
    """A page of a list; `next` is the cursor for `after`, or null where the list has ended."""

    orders: list[_DocumentedOrder]  # type: ignore[assignment]


def document() -> Json:
    """Return the OpenAPI document."""
    template = msgspec.json.decode(_file("openapi.json"))
    made: Json = _expanded(template, template["components"])
    made["info"]["version"] = version("orders")
    made["components"] = {
        "schemas": _schemas(),
        "securitySchemes": template["components"]["securitySchemes"],
    }
    return made


def _schemas() -> Json:
    _, schemas = msgspec.json.schema_components(
        [
            NewOrder,
            BatchLine,
            _DocumentedOrder,
            _DocumentedPage,
            _DocumentedAnswer,
            TutorialOrder,
            StatusNow,
            Problem,
            Health,
        ],
        ref_template=SCHEMAS + "{name}",
    )
    for name, documented in (("Order", "Order"), ("Page", "Page"), ("BatchAnswer", "Answer")):
        schemas[name] = schemas.pop(f"_Documented{documented}") | {"title": name}
    schemas["Page"]["properties"]["orders"]["items"] = {"$ref": f"{SCHEMAS}Order"}
    answer = schemas["BatchAnswer"]["properties"]
    answer["order"] = {"$ref": f"{SCHEMAS}Order"}
    answer["problem"] = {"$ref": f"{SCHEMAS}Problem"}
    schemas["BatchAnswer"]["oneOf"] = [
        {"required": ["order"], "properties": {"status": {"const": 201}}},
        {"required": ["problem"], "properties": {"status": {"minimum": 400, "maximum": 599}}},
    ]
    for name in schemas.keys() - {"NewOrder", "Line", "BatchLine"}:  # an answer has no field beyond those documented
        schemas[name]["additionalProperties"] = False
    return schemas


def _expanded(node: Any, components: Json) -> Any:
    """Return a copy of `node` with the targets of its references, except for those to schemas."""
    match node:
        case {"$ref": str(reference)} if not reference.startswith(SCHEMAS):
            kind, name = reference.removeprefix("#/components/").split("/")
            return _expanded(components[kind][name], components)
        case dict():
            return {name: _expanded(child, components) for name, child in node.items()}
        case list():
            return [_expanded(child, components) for child in node]
    return node


def _file(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


_DOCUMENT = msgspec.json.encode(document())
_PAGE = _file("openapi.html")


def _policy(page: bytes) -> str:
    """Return the Content-Security-Policy that lets a page run its own script and style, and read from this origin."""

    def hashes(element: bytes) -> str:
        inside = re.findall(b"<%b>(.*?)</%b>" % (element, element), page, re.DOTALL)
        return " ".join(f"'sha256-{b64encode(sha256(text).digest()).decode()}'" for text in inside)

    return (
        f"default-src 'none'; script-src {hashes(b'script')}; style-src {hashes(b'style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_POLICY = _policy(_PAGE)


@get("/openapi.json")
async def openapi_document() -> Response[bytes]:
    """Return the document."""
    return Response(_DOCUMENT, media_type="application/json")


@get("/docs")
async def openapi_page() -> Response[bytes]:
    """Return a page that shows the document and loads nothing from other sites."""
    return Response(_PAGE, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


HANDLERS = [openapi_document, openapi_page]
