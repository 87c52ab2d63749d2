"""Many orders in one request: NDJSON in and out, a line for each order and a line for its answer, in the same order.

The body is read whole before the first line is looked at, and the answers leave while later lines still wait. Of the
lines at most LINES_IN_HAND are decoded, placed and answered at a time, so neither a large batch nor a slow reader takes
more memory than its body and that.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import islice
from typing import Annotated

import msgspec
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Meta, Raw

from orders.api import problems
from orders.api.auth import Caller
from orders.api.fast_path import Headers, body_of, header_text, headers_of
from orders.api.problems import BadRequest, Problem
from orders.api.services import Services
from orders.database.place_orders import Placed, Placement, placement_of
from orders.model.errors import OrdersError, Overloaded, Unavailable
from orders.model.order import NewOrder
from orders.model.traceparent import continue_trace

MEDIA_TYPE = "application/x-ndjson"
MAX_LINES = 1000
LINES_IN_HAND = 100  # of one request: more would only wait in the queue of the writers, ahead of single placements
DECODED_AT_ONCE = 20  # lines; then other requests have a turn of the loop

Key = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]*$(?!\n)")]


class BatchLine(NewOrder, frozen=True):
    """A line of a batch: an order, and what a single placement has in its Idempotency-Key."""

    idempotency_key: Key | None = None

    def new_order(self) -> NewOrder:
        """Return the order alone: its fingerprint is that of a single placement."""
        return NewOrder(*[getattr(self, name) for name in NewOrder.__struct_fields__])


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a line of a batch: the order of a 201, or the problem of any other status."""

    line: Annotated[int, Meta(ge=1, le=MAX_LINES)]
    status: int
    order: Raw | None = None
    replayed: bool = False
    problem: Problem | None = None


_is_ndjson = re.compile(rb"application/x-ndjson\s*(;.*)?", re.IGNORECASE).fullmatch
_line = msgspec.json.Decoder(BatchLine)
_encode = msgspec.json.Encoder().encode


async def place_batch(services: Services, scope: Scope, receive: Receive) -> ASGIApp:
    """Place the first lines of a batch; return the answer, which places the others while it is sent.

    Raises BadRequest, RequestEntityTooLarge, TooManyRequests, the errors of `Services.authenticate`, and Unavailable or
    Overloaded if the first lines could only be answered so.
    """
    headers = headers_of(scope)
    caller = await services.authenticate(header_text(headers, b"authorization"), "orders:place")
    if not _is_ndjson(headers.get(b"content-type", b"")):
        raise BadRequest(415, f"The body must be NDJSON: send Content-Type: {MEDIA_TYPE}.", Accept=MEDIA_TYPE)
    if b"idempotency-key" in headers:
        raise BadRequest(400, "Each line of a batch has a key of its own: idempotency_key, not a header.")
    body = await body_of(receive)
    count = body.count(b"\n") + (not body.endswith(b"\n"))
    if not body:
        raise BadRequest(400, "The body is empty: a batch has a line for each order.")
    if count > MAX_LINES:
        raise BadRequest(413, f"The batch has {count} lines: at most {MAX_LINES} are taken at once.")
    chunks = _answers(services, headers, caller, lines_of(body), min(count, LINES_IN_HAND))
    first = await anext(chunks)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # nginx would keep the answers of a batch until they fill a buffer.
        start = [(b"content-type", MEDIA_TYPE.encode()), (b"x-accel-buffering", b"no")]
        leaving = asyncio.create_task(_gone(receive), name="gone")
        try:
            async with contextlib.aclosing(chunks):
                await send({"type": "http.response.start", "status": 200, "headers": start})
                await send({"type": "http.response.body", "body": first, "more_body": True})
                async for chunk in chunks:
                    if leaving.done():  # nobody reads the answers: the lines that are left stay unanswered
                        return
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()

    return answer


def lines_of(body: bytes) -> Iterator[bytes]:
    """Yield the lines without their newlines; the last one may lack it."""
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        if end < 0:
            end = len(body)
        yield body[start:end]
        start = end + 1


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answers(
    services: Services, headers: Headers, caller: Caller, lines: Iterator[bytes], in_hand: int
) -> AsyncGenerator[bytes, None]:
    """Yield the answers to the lines, LINES_IN_HAND at a time, while `in_hand` count in the client's share.

    An error that no line of a turn escapes is the answer to all later lines too, which are not tried: a batch that
    meets an outage ends as soon as a single placement. If it meets the first turn, it is raised.
    """
    client = caller.client
    services.placements.take(client, in_hand)
    try:
        number = 1
        trouble: OrdersError | None = None
        outcomes: Sequence[Placed | Exception]
        while turn := list(islice(lines, LINES_IN_HAND)):
            try:
                if trouble is not None:
                    raise trouble
                if number > 1:  # a slow reader may have outlived its key
                    caller = await services.authenticate(header_text(headers, b"authorization"), "orders:place")
                outcomes = await _place(services, headers, caller, turn)
            except OrdersError as error:
                if number == 1:
                    raise
                trouble = error
                outcomes = [error] * len(turn)
            yield b"".join([_answer(line, outcome) for line, outcome in enumerate(outcomes, number)])
            number += len(turn)
    finally:
        services.placements.give_back(client, in_hand)


async def _place(
    services: Services, headers: Headers, caller: Caller, lines: Sequence[bytes]
) -> list[Placed | Exception]:
    """Place the orders of some lines; return for each what became of it.

    Raises Overloaded or Unavailable if that is the answer to each line.
    """
    services.back_pressure.check()
    traceparent = header_text(headers, b"traceparent")
    read: list[Placement | Exception] = []
    for number, line in enumerate(lines, 1):
        read.append(_placement(line, caller.client, traceparent))
        if number % DECODED_AT_ONCE == 0:
            await asyncio.sleep(0)
    placements = [each for each in read if isinstance(each, Placement)]
    placed = iter(await services.place_many(placements, caller.until) if placements else ())
    outcomes = [next(placed) if isinstance(each, Placement) else each for each in read]
    if all(isinstance(outcome, Overloaded | Unavailable) for outcome in outcomes):
        raise outcomes[0]  # type: ignore[misc]  # it is one of the two
    return outcomes


def _placement(line: bytes, client: str, traceparent: str | None) -> Placement | Exception:
    """Return what a line places, or why it cannot."""
    if not line.strip():
        return BadRequest(400, "The line is blank.")
    try:
        decoded: BatchLine = problems.decode(_line, line, "line")
        return placement_of(
            decoded.new_order(), client=client, traceparent=continue_trace(traceparent), key=decoded.idempotency_key
        )
    except Exception as error:  # of this line alone, even if it is a bug
        return error


def _answer(line: int, outcome: Placed | Exception) -> bytes:
    """Return the answer to a line; a BatchAnswer whose order is encoded already."""
    if isinstance(outcome, Placed):
        replayed = b',"replayed":true' if outcome.replayed else b""
        return b'{"line":%d,"status":201,"order":%b%b}\n' % (line, outcome.answer, replayed)
    problem = problems.document_of(outcome)
    return _encode(BatchAnswer(line=line, status=problem.status, problem=problem)) + b"\n"
