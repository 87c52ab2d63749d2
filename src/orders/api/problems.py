"""Answers to errors: RFC 9457 problem documents, which name the fault and, if there is one, the field."""

import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, get_args, get_origin

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp
from msgspec.structs import FieldInfo
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
    errors.Forbidden: 403,
    errors.TooLate: 409,
    errors.InvalidOrder: 422,
    errors.KeyReused: 422,
    errors.Refused: 422,
    errors.TooManyRequests: 429,
    errors.Overloaded: 503,
    errors.Unavailable: 503,
}
RETRY_AFTER_SECONDS = "1"
MAX_ERRORS = 50  # fields that one answer names
MAX_ITEMS = 1000  # items of a list that are looked at
BUG = "Something is wrong on our side."
SHOWN_CHARACTERS = 100  # of a field's name that the client made up

BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))

PROBLEMS = Counter(
    "orders_problems_total", "Requests, or lines of a batch, answered with a problem, by status", ["status"]
)


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

    `field` names the field at fault, `others` further faults of the request. Keywords are header names with `_` for
    `-`.
    """

    def __init__(
        self, status: int, detail: str, field: str | None = None, others: Sequence[FieldProblem] = (), **headers: str
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.others = others
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def answer(
    request: Request[Any, Any, Any],
    status: int,
    detail: str,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
    others: Sequence[FieldProblem] = (),
) -> Response[bytes]:
    """Return the problem document for a status, as a response; count it."""
    extra = dict(headers or {})
    if status in (429, 503):
        extra.setdefault("Retry-After", RETRY_AFTER_SECONDS)
    elif status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    document = msgspec.json.encode(_document(status, detail, field, others))
    return Response(document, status_code=status, media_type=MEDIA_TYPE, headers=extra)


def _document(status: int, detail: str, field: str | None = None, others: Sequence[FieldProblem] = ()) -> Problem:
    """Return the problem document for a status; count it."""
    if others:
        more = f"{len(others)} more fields are" if len(others) > 1 else "1 more field is"
    PROBLEMS.labels(str(status)).inc()
    return Problem(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=f"{detail} ({more} wrong: see `errors`)" if others else detail,
        errors=[*([FieldProblem(field, detail)] if field else []), *others],
        request_id=REQUEST_ID.get(),
    )


def document_of(error: Exception) -> Problem:
    """Return the problem document for what befell one line of a batch."""
    if isinstance(error, BadRequest):
        return _document(error.status, error.detail, error.field, error.others)
    if isinstance(error, errors.OrdersError):
        return _document(STATUS[type(error)], str(error), getattr(error, "field", None))
    log.error("a line of a batch failed", exc_info=error)
    return _document(500, BUG)


def of_bad_request(request: Request[Any, Any, Any], error: BadRequest) -> Response[bytes]:
    """Answer a fault that a handler found in a request."""
    return answer(request, error.status, error.detail, error.field, error.headers, error.others)


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
    return answer(request, 500, BUG)


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
# How msgspec names the pattern of a batch's idempotency_key; every other pattern is the one of printable text.
_VISIBLE_ASCII = r"^[\\x21-\\x7e]"
_NAMED = re.compile(r"Object (?P<how>missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL).fullmatch


def decode(decoder: msgspec.json.Decoder[Any], body: bytes, what: str = "body") -> Any:
    """Return a JSON body decoded; raise BadRequest for every fault that it can have, with the fields that have one.

    `what` it is called in the detail.
    """
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            if "Expected `int`, got `float`" not in str(error):
                raise
            # JSON Schema takes 2.0 for an integer, and some clients write integers that way; msgspec refuses it.
            return msgspec.convert(_with_integers(msgspec.json.decode(body)), decoder.type)
    except msgspec.ValidationError as error:
        raise of_validation(error, decoder.type, _decoded(body)) from None
    except msgspec.DecodeError as error:
        for mark, encoding in BYTE_ORDER_MARKS:
            if body.startswith(mark):
                detail = f"The {what} begins with a byte order mark (BOM) of {encoding}: send UTF-8 without one."
                raise BadRequest(400, detail) from None
        detail = (
            str(error)
            .replace("JSON is malformed", f"The {what} is not JSON")
            .replace("Input data was", f"The {what} is")
        )
        raise BadRequest(400, detail) from None
    except UnicodeDecodeError:
        raise BadRequest(400, f"The {what} is not valid UTF-8.") from None
    except RecursionError:
        raise BadRequest(400, f"The {what} is nested too deeply.") from None


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
    """Return the parameters of a request as a `type_`; raise BadRequest with the names of the invalid ones."""
    try:
        return msgspec.convert(values, type_, strict=False)
    except msgspec.ValidationError as error:
        raise of_validation(error, type_, values, strict=False) from None


def of_validation(error: msgspec.ValidationError, type_: Any, value: Any, *, strict: bool = True) -> BadRequest:
    """Return msgspec's error as a BadRequest, with the faults of the other fields of `value`, which is no `type_`.

    `strict`: as msgspec.convert takes it.
    """
    first = problem_of(error)
    if not first.field or value is None:
        return BadRequest(400, first.detail, first.field or None)
    found = islice(faults(type_, value, strict=strict), MAX_ERRORS)
    return BadRequest(400, first.detail, first.field, [problem for problem in found if problem.field != first.field])


def problem_of(error: msgspec.ValidationError, where: str = "") -> FieldProblem:
    """Return msgspec's error with the path of the field below `where`; the path of the whole value is empty."""
    text = str(error)
    if len(text) > 4 * SHOWN_CHARACTERS:  # only a field's name makes it long; the path is at its end
        text = f"{text[: 2 * SHOWN_CHARACTERS]}...{text[-2 * SHOWN_CHARACTERS :]}"
    match = _AT(text)
    what, path = (match["what"], match["path"] or "$") if match else (text, "$")
    if named := _NAMED(what):
        path = f"{path}.{shown(named['name'])}"
        what = "This field is missing." if named["how"].startswith("missing") else "There is no such field."
    elif _VISIBLE_ASCII in what:
        what = "Only visible ASCII characters are allowed."
    elif "matching regex" in what:
        what = "Control characters and line breaks are not allowed."
    field = (where + path.removeprefix("$")).removeprefix(".")
    return FieldProblem(field, f"{field}: {what}" if field else what)


def faults(type_: Any, value: Any, where: str = "", *, strict: bool = True) -> Iterator[FieldProblem]:
    """Yield the fault of each field of `value`, which msgspec stops to look for at the first.

    `where` is the path of `value`. Only structs and lists are looked into.
    """
    bare = get_args(type_)[0] if get_origin(type_) is Annotated else type_
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct) and isinstance(value, Mapping):
        yield from _faults_of_fields(bare, value, where, strict=strict)
        return
    if get_origin(bare) is list and isinstance(value, list):
        found = False
        for number, item in enumerate(value[:MAX_ITEMS]):
            for fault in faults(get_args(bare)[0], item, f"{where}[{number}]", strict=strict):
                found = True
                yield fault
        if found:
            return
    if isinstance(value, float):
        value = _with_integers(value)
    try:
        msgspec.convert(value, type_, strict=strict)
    except msgspec.ValidationError as error:
        yield problem_of(error, where)


@functools.cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(struct)}


def _faults_of_fields(
    struct: type[msgspec.Struct], value: Mapping[str, Any], where: str, *, strict: bool
) -> Iterator[FieldProblem]:
    fields = _fields(struct)
    for name, field in fields.items():
        path = f"{where}.{name}".removeprefix(".")
        if name in value:
            yield from faults(field.type, value[name], path, strict=strict)
        elif field.required:
            yield FieldProblem(path, f"{path}: This field is missing.")
    if struct.__struct_config__.forbid_unknown_fields:
        for name in value:
            if name not in fields:
                path = f"{where}.{shown(name)}".removeprefix(".")
                yield FieldProblem(path, f"{path}: There is no such field.")


def shown(name: str) -> str:
    """Return a field's name that the client made up, cut after SHOWN_CHARACTERS."""
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..."


def _decoded(body: bytes) -> Any:
    """Return a body that is no valid value of its type; None if it is no valid JSON either."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
