"""Answers to errors: RFC 9457 problem documents, which name the fault and, if there is one, the field."""

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp
from prometheus_client import Counter

from orders.api.middleware import allow
from orders.model import errors
from orders.runtime.process import REQUEST_ID

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

# The only table from orders.model.errors to HTTP statuses.
STATUS: dict[type[errors.OrdersError], int] = {
    errors.OrderNotFound: 404,
    errors.Unauthorized: 401,
    errors.TooLate: 409,
    errors.InvalidOrder: 422,
    errors.KeyReused: 422,
    errors.Refused: 422,
    errors.Overloaded: 503,
    errors.Unavailable: 503,
}
RETRY_AFTER_SECONDS = "1"

PROBLEMS = Counter("orders_problems_total", "Requests answered with a problem, by status", ["status"])


class FieldProblem(msgspec.Struct, frozen=True):
    """The fault of one field; `field` is its path in the body, as in `lines[0].quantity`."""

    field: str
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A problem document."""

    title: str
    status: int
    detail: str
    type: str = msgspec.field(default="")
    errors: list[FieldProblem] = []
    request_id: str | None = None


class BadRequest(Exception):
    """A fault of a request that only HTTP knows; the answer is a problem with this status, detail and headers.

    `field` names the field at fault. Keywords are header names with `_` for `-`.
    """

    def __init__(self, status: int, detail: str, field: str | None = None, **headers: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def answer(
    request: Request[Any, Any, Any],
    status: int,
    detail: str,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response[bytes]:
    """Return the problem document for a status, as a response; count it."""
    problem = Problem(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=[FieldProblem(field, detail)] if field else [],
        request_id=REQUEST_ID.get(),
    )
    extra = dict(headers or {})
    if status == 503:
        extra.setdefault("Retry-After", RETRY_AFTER_SECONDS)
    elif status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    PROBLEMS.labels(str(status)).inc()
    return Response(msgspec.json.encode(problem), status_code=status, media_type=MEDIA_TYPE, headers=extra)


def of_bad_request(request: Request[Any, Any, Any], error: BadRequest) -> Response[bytes]:
    """Answer a fault that a handler found in a request."""
    return answer(request, error.status, error.detail, error.field, error.headers)


def of_orders_error(request: Request[Any, Any, Any], error: errors.OrdersError) -> Response[bytes]:
    """Answer an error of orders.model.errors, by the table STATUS."""
    if isinstance(error, errors.Refused):
        log.warning("%s %s is refused by the database: %s", request.method, request.url.path, error)
    return answer(request, STATUS[type(error)], str(error), getattr(error, "field", None))


def of_litestar(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer a refusal by Litestar: an unknown route, a wrong method, a body that is too large."""
    if error.status_code >= 500:
        return of_bug(request, error)
    phrase = HTTPStatus(error.status_code).phrase
    details = {404: "There is nothing at this path.", 413: "The body is larger than 1 MiB."}
    detail = details.get(error.status_code) or error.detail or phrase
    headers = {name: allow(value) if name == "allow" else value for name, value in (error.headers or {}).items()}
    return answer(request, error.status_code, detail, headers=headers)


def of_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer an unexpected error: the log gets the details, the client gets the request's id."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer(request, 500, "Something is wrong on our side.")


# Litestar's exception handlers, by the class of the error.
HANDLERS: Any = {
    BadRequest: of_bad_request,
    errors.OrdersError: of_orders_error,
    HTTPException: of_litestar,
    Exception: of_bug,
}


def answer_to(request: Request[Any, Any, Any], error: Exception) -> ASGIApp:
    """Return the answer to an error, ready to be sent: that of the nearest class in HANDLERS."""
    handler = next(HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS)
    response: Response[bytes] = handler(request, error)
    return response.to_asgi_response(None, request)


_AT = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL).fullmatch
_NAMED = re.compile(r"Object (?P<how>missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL).fullmatch


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Return a JSON body decoded; raise BadRequest for every fault that it can have, with the field if there is one."""
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            if "Expected `int`, got `float`" not in str(error):
                raise
            # JSON Schema takes 2.0 for an integer, and some clients write integers that way; msgspec refuses it.
            return msgspec.convert(_with_integers(msgspec.json.decode(body)), decoder.type)
    except msgspec.ValidationError as error:
        raise of_validation(error) from None
    except msgspec.DecodeError as error:
        detail = (
            str(error).replace("JSON is malformed", "The body is not JSON").replace("Input data was", "The body is")
        )
        raise BadRequest(400, detail) from None
    except UnicodeDecodeError:
        raise BadRequest(400, "The body is not valid UTF-8.") from None
    except RecursionError:
        raise BadRequest(400, "The body is nested too deeply.") from None


def _with_integers(value: Any) -> Any:
    """Return `value` with each integral float as an int; above 2**53 a float may stand for several integers."""
    match value:
        case float() if value.is_integer() and abs(value) <= 2**53:
            return int(value)
        case list():
            return [_with_integers(item) for item in value]
        case dict():
            return {name: _with_integers(item) for name, item in value.items()}
        case _:
            return value


def convert(type_: Any, values: Mapping[str, Any]) -> Any:
    """Return the parameters of a request as a `type_`; raise BadRequest with the name of the first invalid one."""
    try:
        return msgspec.convert(values, type_, strict=False)
    except msgspec.ValidationError as error:
        raise of_validation(error) from None


def of_validation(error: msgspec.ValidationError) -> BadRequest:
    """Return msgspec's error as a BadRequest with the path of the field and its fault."""
    match = _AT(str(error))
    what, path = (match["what"], match["path"] or "$") if match else (str(error), "$")
    if named := _NAMED(what):
        path = f"{path}.{named['name']}"
        what = "This field is missing." if named["how"].startswith("missing") else "There is no such field."
    elif "matching regex" in what:
        what = "Control characters and line breaks are not allowed."
    field = path.removeprefix("$").removeprefix(".")
    return BadRequest(400, f"{field}: {what}" if field else what, field or None)
