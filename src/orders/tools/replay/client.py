"""Send the invoices of a file as orders, and follow each to its end.

The file is read twice: first to its end, since nothing of a malformed file may be sent, then while sending. The
Idempotency-Key of an invoice is made from the file's content: an invoice that is sent twice, by a retry or by another
run of the command, is placed once.
"""

import asyncio
import contextlib
import ipaddress
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import msgspec
from msgspec import Meta

from orders.model.order import TERMINAL, Status
from orders.runtime.retry_pauses import backoff
from orders.tools.replay.invoices import AcceptedInvoice, MalformedFile, RefusalReason, RefusedInvoice, Survey, read

TRY_AGAIN = frozenset({429, 502, 503, 504})  # temporary failures; the key makes a repeat harmless
MAX_RETRY_AFTER_SECONDS = 10.0
REQUEST_SECONDS = 15.0  # nginx gives up after 10 s: its 504 comes first

# Orders placed and not yet seen to end. The bound limits our memory while the system is slower than its clients; a
# lower one would leave a worker idle whose handlers wait for seconds.
MAX_IN_FLIGHT = 5000
MAX_BATCH_BYTES = 1 << 20  # of one request; the service takes no more
FIRST_POLL_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0

NDJSON = {"Content-Type": "application/x-ndjson"}

MAX_EXAMPLES = 10  # orders that the report names for each way not to be done


class Latencies:
    """A histogram in steps of 2 %: percentiles to 1 %, in constant memory for any number of orders."""

    STEP = math.log(1.02)
    LEAST = 1e-6

    def __init__(self) -> None:
        self.count = 0
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count the latency of one order."""
        self.count += 1
        self._counts[round(math.log(max(seconds, self.LEAST)) / self.STEP)] += 1

    def percentile(self, share: float) -> float | None:
        """Return the latency in seconds that this share (0 to 1) of the orders did not exceed; None without orders."""
        rank = math.ceil(share * self.count)
        for step in sorted(self._counts):
            rank -= self._counts[step]
            if rank <= 0:
                return math.exp(step * self.STEP)
        return None


class Leg(msgspec.Struct, frozen=True):
    """The latencies of one part of the way of an order."""

    orders: int
    p50_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, latencies: Latencies) -> "Leg":
        """Return the percentiles of a histogram."""
        return cls(latencies.count, _milliseconds(latencies.percentile(0.5)), _milliseconds(latencies.percentile(0.99)))


class RefusalCount(msgspec.Struct, frozen=True):
    """How many invoices the rule refused for one reason, with the first of them as an example."""

    count: int
    example: str


class NotDone(msgspec.Struct, frozen=True):
    """An accepted invoice whose order is not done, and why."""

    invoice: str
    order_id: UUID | None
    what: str


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a replay, as `--json` prints it."""

    file: str
    to: str
    run: str
    currency: str
    blank: int  # rows without any text, skipped
    invoices: int
    accepted: int  # by the rule
    refused: int  # by the rule, never sent
    refused_by: dict[str, RefusalCount]
    placed: int  # answered 201
    placed_before: int  # of these, those that an earlier run had placed
    done: int
    failed: int
    cancelled: int
    unfinished: int  # placed, and not seen to end
    lost: int  # placed, and then answered with an error that no retry cures
    rejected: int  # answered with an error that no retry cures
    unplaced: int  # never answered, or never sent
    not_done: list[NotDone]  # examples
    retries: int
    seconds: float
    orders_per_second: float
    legs: dict[str, Leg]
    gave_up: str | None  # why it ended before everything had

    @property
    def complete(self) -> bool:
        """Whether the order of every accepted invoice is done."""
        return self.done == self.accepted and self.gave_up is None


class _OrderAnswer(msgspec.Struct, frozen=True):
    """What we read of the service's answer about an order."""

    order_id: UUID
    status: Status
    created_at: datetime
    finished_at: datetime | None = None
    failure_reason: str | None = None


class _ProblemAnswer(msgspec.Struct, frozen=True):
    detail: Annotated[str, Meta(min_length=1)]


class _LineAnswer(msgspec.Struct, frozen=True):
    """What we read of the service's answer to a line of a batch."""

    line: int
    status: int
    order: _OrderAnswer | None = None
    replayed: bool = False
    problem: _ProblemAnswer | None = None

    @property
    def summary(self) -> str:
        """The status, and the problem's detail."""
        return f"{self.status}: {self.problem.detail}" if self.problem else str(self.status)


_line_answer = msgspec.json.Decoder(_LineAnswer)
_order_answer = msgspec.json.Decoder(_OrderAnswer)
_problem_answer = msgspec.json.Decoder(_ProblemAnswer)


class ReplayLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How fast to send, and when to stop waiting."""

    rate: float | None = None  # maximum orders per second
    concurrency: int = 16  # requests in flight
    batch: int = 1  # orders in one request, at most
    patience: float = 60.0  # seconds without progress


class Replay:
    """One replay and its counters, which report() reads at any time, also after an interruption."""

    def __init__(self, path: Path, survey: Survey, to: str, limits: ReplayLimits, run: str = "") -> None:
        self.path = path
        self.survey = survey
        self.to = to.rstrip("/")
        self.limits = limits
        self.run_name = run
        self.placed = 0
        self.placed_before = 0
        self.statuses: Counter[Status] = Counter()
        self.rejected = 0
        self.lost = 0
        self.retries = 0
        self.trouble = ""  # the latest reason for a retry
        self.gave_up: str | None = None
        self._not_done: list[NotDone] = []
        self._following: dict[str, _OrderAnswer] = {}  # invoice -> the order as last seen
        self._accepting = Latencies()
        self._working = Latencies()
        self._usual_seconds = FIRST_POLL_SECONDS  # from placed to its end, a moving average
        self._started: float | None = None
        self._ended: float | None = None

    @property
    def key_prefix(self) -> str:
        """The prefix of the Idempotency-Keys of this replay."""
        run = f"{self.run_name}-" if self.run_name else ""
        return f"replay-{run}{self.survey.fingerprint[:16]}-"

    @property
    def ended(self) -> int:
        """The number of orders that have ended, done or not."""
        return self.statuses.total()

    async def run(self) -> None:
        """Send every accepted invoice and follow its order; give up, and set `gave_up`, if nothing moves any more.

        Raises MalformedFile if the file has changed since it was surveyed, after the orders that were sent have ended.
        """
        self._started = time.monotonic()
        try:
            async with _Clients(self.to) as clients, asyncio.timeout(self.limits.patience) as deadline:
                await _Run(self, clients, deadline).send_and_follow()
        except TimeoutError:
            self.gave_up = f"nothing moved for {self.limits.patience:g} s" + (
                f"; the last trouble was: {self.trouble}" if self.trouble else ""
            )
        finally:
            self._ended = time.monotonic()

    def report(self) -> ReplayReport:
        """Return what has been done so far."""
        seconds = (self._ended or time.monotonic()) - self._started if self._started else 0.0
        unfinished = [
            NotDone(invoice, order.order_id, f"still {order.status}")
            for invoice, order in list(self._following.items())[:MAX_EXAMPLES]
        ]
        return ReplayReport(
            file=str(self.path),
            to=self.to,
            run=self.run_name,
            currency=self.survey.currency,
            blank=self.survey.blank,
            invoices=self.survey.invoices,
            accepted=self.survey.accepted,
            refused=sum(self.survey.refused.values()),
            refused_by={
                reason.name.lower(): RefusalCount(self.survey.refused[reason], _example(self.survey.examples[reason]))
                for reason in RefusalReason
                if reason in self.survey.refused
            },
            placed=self.placed,
            placed_before=self.placed_before,
            done=self.statuses["done"],
            failed=self.statuses["failed"],
            cancelled=self.statuses["cancelled"],
            unfinished=len(self._following),
            lost=self.lost,
            rejected=self.rejected,
            unplaced=self.survey.accepted - self.placed - self.rejected,
            not_done=[*self._not_done, *unfinished],
            retries=self.retries,
            seconds=round(seconds, 3),
            orders_per_second=round(self.ended / seconds, 1) if seconds else 0.0,
            legs={"accept": Leg.of(self._accepting), "placed_to_end": Leg.of(self._working)},
            gave_up=self.gave_up,
        )

    # Called by _Run.

    def order_placed(self, invoice: str, order: _OrderAnswer, seconds: float, *, before: bool) -> None:
        """Count a 201, and remember the order as unfinished."""
        self.placed += 1
        self.placed_before += before
        self._accepting.add(seconds)
        self._following[invoice] = order

    def order_rejected(self, invoice: str, what: str) -> None:
        """Count an answer that no retry cures."""
        self.rejected += 1
        self._remember(NotDone(invoice, None, what))

    def order_seen(self, invoice: str, order: _OrderAnswer) -> bool:
        """Record the present state of an order; return whether it has ended."""
        if order.status not in TERMINAL:
            self._following[invoice] = order
            return False
        del self._following[invoice]
        self.statuses[order.status] += 1
        if order.finished_at is not None:
            seconds = (order.finished_at - order.created_at).total_seconds()
            self._working.add(seconds)
            self._usual_seconds += 0.1 * (seconds - self._usual_seconds)
        if order.status != "done":
            reason = f": {order.failure_reason}" if order.failure_reason else ""
            self._remember(NotDone(invoice, order.order_id, order.status + reason))
        return True

    def order_lost(self, invoice: str, what: str) -> None:
        """Count an order that the service cannot show."""
        order = self._following.pop(invoice)
        self.lost += 1
        self._remember(NotDone(invoice, order.order_id, what))

    def pauses(self) -> Iterator[float]:
        """Yield the seconds before each request for an order: first the usual time to its end, then half, then more."""
        usual = min(max(FIRST_POLL_SECONDS, self._usual_seconds), LONGEST_PAUSE_SECONDS)
        yield usual
        pause = max(FIRST_POLL_SECONDS, usual / 2)
        while True:
            yield pause
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)

    def _remember(self, not_done: NotDone) -> None:
        if len(self._not_done) < MAX_EXAMPLES:
            self._not_done.append(not_done)


class _UnusableAnswer(Exception):
    """No retry would change this answer; the message says what it was."""


class _Line(msgspec.Struct, frozen=True):
    """An invoice as a line of a batch."""

    number: str
    text: bytes


class _Clients:
    """HTTP clients with one connection each.

    httpx checks every connection of its pool for each request: one client with 24 connections cost twice the CPU.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        # The environment's proxy is not for this machine.
        self._trust_env = not _is_loopback(url)
        self._tls = httpx.create_ssl_context(trust_env=self._trust_env)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def new(self) -> httpx.AsyncClient:
        """Return a new client, closed with all others."""
        return await self._stack.enter_async_context(
            httpx.AsyncClient(base_url=self._url, timeout=REQUEST_SECONDS, verify=self._tls, trust_env=self._trust_env)
        )


class _Run:
    """The tasks of one replay. They run within `send_and_follow`."""

    def __init__(self, replay: Replay, clients: _Clients, deadline: asyncio.Timeout) -> None:
        self._replay = replay
        self._clients = clients
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._polling: asyncio.Queue[httpx.AsyncClient] = asyncio.Queue()
        self._invoices = read(replay.path, replay.survey.currency)
        self._next_start = self._loop.time()
        self._left: list[AcceptedInvoice] = []  # read already, and too large for the batch before
        self._malformed: MalformedFile | None = None

    async def send_and_follow(self) -> None:
        # As many as clients that place orders, or following would be slower than placing.
        for _ in range(self._replay.limits.concurrency):
            self._polling.put_nowait(await self._clients.new())
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._replay.limits.concurrency):
                tasks.create_task(self._send(tasks, await self._clients.new()), name=f"replay-send-{number}")
        if self._malformed:
            raise self._malformed

    async def _send(self, tasks: asyncio.TaskGroup, client: httpx.AsyncClient) -> None:
        """Place one invoice or batch after another, and start a task for each order that follows it."""
        while True:
            await self._in_flight.acquire()
            accepted = self._next()
            if accepted is None:
                self._in_flight.release()
                return
            if self._replay.limits.batch > 1:
                lines = await self._lines(accepted)
                await self._keep_rate(len(lines))
                await self._place_many(tasks, client, lines)
                continue
            await self._keep_rate()
            order = await self._place(client, accepted)
            if order is None:
                self._in_flight.release()
            else:
                self._start_to_follow(tasks, accepted.number, order)

    def _start_to_follow(self, tasks: asyncio.TaskGroup, invoice: str, order: _OrderAnswer) -> None:
        tasks.create_task(self._follow(invoice, order), name=f"replay-follow-{invoice}")

    async def _lines(self, first: AcceptedInvoice) -> list[_Line]:
        """Return the lines of a batch that begins with `first`; fewer than wanted if more orders may not be in flight.

        Waiting for others to end, all senders might hold a part of what is allowed, and none enough.
        """
        lines = [self._line_of(first)]
        size = len(lines[0].text)
        while len(lines) < self._replay.limits.batch and not self._in_flight.locked():
            accepted = self._next()
            if accepted is None:
                break
            line = self._line_of(accepted)
            size += len(line.text)
            if size > MAX_BATCH_BYTES:
                self._left.append(accepted)
                break
            await self._in_flight.acquire()  # at once, since it is not locked
            lines.append(line)
        return lines

    def _line_of(self, accepted: AcceptedInvoice) -> _Line:
        key = self._replay.key_prefix + accepted.number
        line = msgspec.structs.asdict(accepted.order) | {"idempotency_key": key}
        return _Line(accepted.number, msgspec.json.encode(line) + b"\n")

    def _next(self) -> AcceptedInvoice | None:
        if self._left:
            return self._left.pop()
        try:
            return next((invoice for invoice in self._invoices if isinstance(invoice, AcceptedInvoice)), None)
        except MalformedFile as error:  # the survey found none: the file has changed since
            self._malformed = error
            return None

    async def _keep_rate(self, orders: int = 1) -> None:
        """Wait for our turn. Turns missed during a stall are not made up for, or it would end in a flood."""
        if rate := self._replay.limits.rate:
            turn = max(self._next_start, self._loop.time())
            self._next_start = turn + orders / rate
            # A low rate is no stall.
            self._progress(turn)
            await asyncio.sleep(turn - self._loop.time())

    async def _place(self, client: httpx.AsyncClient, accepted: AcceptedInvoice) -> _OrderAnswer | None:
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": self._replay.key_prefix + accepted.number,
        }
        began = self._loop.time()
        try:
            answer = await self._ask(client, "POST", "/orders", headers, msgspec.json.encode(accepted.order))
            order = _order_in(answer)
        except _UnusableAnswer as error:
            self._replay.order_rejected(accepted.number, str(error))
            return None
        finally:
            self._progress()
        before = "idempotency-replayed" in answer.headers
        self._replay.order_placed(accepted.number, order, self._loop.time() - began, before=before)
        return order

    async def _place_many(self, tasks: asyncio.TaskGroup, client: httpx.AsyncClient, lines: list[_Line]) -> None:
        """Place the orders of a batch; send those again that have no answer, or a temporary failure."""
        began = self._loop.time()
        for pause in backoff(0.1, 2.0):
            left = dict(enumerate(lines, 1))
            wait = pause
            trouble = "POST /orders/batch: the answer has too few lines"
            try:
                async with client.stream("POST", "/orders/batch", headers=NDJSON, content=_body(lines)) as answer:
                    if answer.status_code != 200:
                        await answer.aread()
                        trouble = f"POST /orders/batch was answered {_summary(answer)}"
                        wait = max(pause, _retry_after(answer))
                        if answer.status_code not in TRY_AGAIN:
                            self._reject(left, f"answered {_summary(answer)}")
                    else:
                        async for text in answer.aiter_lines():
                            told = _line_answer.decode(text)
                            if told.status in TRY_AGAIN:
                                trouble = f"a line of a batch was answered {told.summary}"
                            else:
                                self._line_answered(tasks, left.pop(told.line), told, self._loop.time() - began)
            except httpx.TransportError as error:
                trouble = f"POST /orders/batch: {str(error) or type(error).__name__}"
            except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
                self._reject(left, "answered 200 with something that is no answer to its line")
            finally:
                self._progress()
                lines = list(left.values())
            if not lines:
                return
            self._replay.retries += 1
            self._replay.trouble = trouble
            await asyncio.sleep(wait)

    def _line_answered(self, tasks: asyncio.TaskGroup, line: _Line, told: _LineAnswer, seconds: float) -> None:
        if told.status == 201 and told.order is not None:
            self._replay.order_placed(line.number, told.order, seconds, before=told.replayed)
            self._start_to_follow(tasks, line.number, told.order)
        else:
            self._reject({told.line: line}, f"answered {told.summary}")

    def _reject(self, lines: dict[int, _Line], what: str) -> None:
        """Count lines as rejected, and forget them."""
        for line in lines.values():
            self._replay.order_rejected(line.number, what)
            self._in_flight.release()
        lines.clear()

    async def _follow(self, invoice: str, order: _OrderAnswer) -> None:
        """Request an order until it has ended.

        The latencies come from the service's timestamps, and do not depend on when we ask.
        """
        try:
            for pause in self._replay.pauses():
                await asyncio.sleep(pause)
                client = await self._polling.get()
                try:
                    now = _order_in(await self._ask(client, "GET", f"/orders/{order.order_id}"))
                finally:
                    self._polling.put_nowait(client)
                if self._replay.order_seen(invoice, now):
                    return
                if now.status != order.status:
                    order = now
                    self._progress()
        except _UnusableAnswer as error:
            self._replay.order_lost(invoice, str(error))
        finally:
            self._progress()
            self._in_flight.release()

    async def _ask(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """Return the answer; retry through outages until the replay loses its patience."""
        for pause in backoff(0.1, 2.0):
            wait = pause
            try:
                answer = await client.request(method, path, headers=headers, content=content)
            except httpx.TransportError as error:
                trouble = f"{method} {path}: {str(error) or type(error).__name__}"
            else:
                if answer.status_code not in TRY_AGAIN:
                    return answer
                trouble = f"{method} {path} was answered {_summary(answer)}"
                wait = max(wait, _retry_after(answer))
            self._replay.retries += 1
            self._replay.trouble = trouble
            await asyncio.sleep(wait)
        raise AssertionError("a backoff never ends")

    def _progress(self, at: float | None = None) -> None:
        """Restart the patience, from now or from `at`, a later time of the loop's clock."""
        end = (at or self._loop.time()) + self._replay.limits.patience
        if not self._deadline.expired() and end > (self._deadline.when() or 0):
            self._deadline.reschedule(end)


def _body(lines: list[_Line]) -> bytes:
    return b"".join([line.text for line in lines])


def _order_in(answer: httpx.Response) -> _OrderAnswer:
    if answer.status_code not in (200, 201):
        raise _UnusableAnswer(f"answered {_summary(answer)}")
    try:
        return _order_answer.decode(answer.content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _UnusableAnswer(f"answered {answer.status_code} with something that is no order") from None


def _summary(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code}: {_problem_answer.decode(answer.content).detail}"
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return f"{answer.status_code} {answer.reason_phrase}"


def _retry_after(answer: httpx.Response) -> float:
    """Return the seconds of Retry-After, at most 10; 0 for a date, which HTTP allows too and no part of ours sends."""
    given = answer.headers.get("retry-after", "")
    return min(float(given), MAX_RETRY_AFTER_SECONDS) if given.isascii() and given.isdigit() else 0.0


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _example(refused: RefusedInvoice) -> str:
    return f"{refused.number}, line {refused.line}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
