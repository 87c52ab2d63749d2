"""Send the invoices of a file as orders, and follow each to its end.

The file is read twice: once to its end, so that nothing of a malformed file is sent, and once while sending. The
Idempotency-Key of an invoice is made of the file's content, so that whatever is sent twice, by a retry or by another
run of the same command, is placed once.
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

TRY_AGAIN = frozenset({429, 502, 503, 504})  # weather; the key makes a repeat harmless
MAX_RETRY_AFTER_SECONDS = 10.0
REQUEST_SECONDS = 15.0  # nginx gives up after 10 s: its 504 comes first

# Orders placed and not yet seen at their end. It bounds the memory that a system slower than its clients would cost
# us; with fewer, a worker whose handlers wait for seconds would wait for us.
MAX_IN_FLIGHT = 5000
FIRST_POLL_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0

MAX_EXAMPLES = 10  # orders named in the report for each way of not being done


class Latencies:
    """Counts on a scale of 2 % steps: percentiles to 1 %, in the same memory for any number of orders."""

    STEP = math.log(1.02)
    LEAST = 1e-6

    def __init__(self) -> None:
        self.count = 0
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one order."""
        self.count += 1
        self._counts[round(math.log(max(seconds, self.LEAST)) / self.STEP)] += 1

    def percentile(self, share: float) -> float | None:
        """Return the seconds within which this share of the orders was served, or None without any."""
        rank = math.ceil(share * self.count)
        for step in sorted(self._counts):
            rank -= self._counts[step]
            if rank <= 0:
                return math.exp(step * self.STEP)
        return None


class Leg(msgspec.Struct, frozen=True):
    """The latencies of one leg of the way."""

    orders: int
    p50_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, latencies: Latencies) -> "Leg":
        """Take its percentiles."""
        return cls(latencies.count, _milliseconds(latencies.percentile(0.5)), _milliseconds(latencies.percentile(0.99)))


class RefusalCount(msgspec.Struct, frozen=True):
    """How many invoices the rule refused for one reason, and the first of them."""

    count: int
    example: str


class NotDone(msgspec.Struct, frozen=True):
    """An invoice that was to be placed, and what became of it instead of `done`."""

    invoice: str
    order_id: UUID | None
    what: str


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did."""

    file: str
    to: str
    run: str
    invoices: int
    accepted: int  # by the rule
    refused: int  # by the rule, never sent
    refused_by: dict[str, RefusalCount]
    placed: int  # answered 201
    placed_before: int  # of these, those that an earlier run had placed
    done: int
    failed: int
    cancelled: int
    unfinished: int  # placed, and not seen at their end
    lost: int  # placed, and then a look at it was answered with an error
    rejected: int  # answered with an error that no retry mends
    unplaced: int  # never answered, or never sent
    not_done: list[NotDone]  # examples
    retries: int
    seconds: float
    orders_per_second: float
    legs: dict[str, Leg]
    gave_up: str | None  # why it ended before everything had

    @property
    def complete(self) -> bool:
        """Every invoice that the rule accepts is an order that is done."""
        return self.done == self.accepted and self.gave_up is None


class _OrderAnswer(msgspec.Struct, frozen=True):
    """What we read of an order as it is answered."""

    order_id: UUID
    status: Status
    created_at: datetime
    finished_at: datetime | None = None
    failure_reason: str | None = None


class _ProblemAnswer(msgspec.Struct, frozen=True):
    detail: Annotated[str, Meta(min_length=1)]


_order_answer = msgspec.json.Decoder(_OrderAnswer)
_problem_answer = msgspec.json.Decoder(_ProblemAnswer)


class ReplayLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How fast to send, and when to stop waiting; times are seconds."""

    rate: float | None = None  # orders a second at most
    concurrency: int = 16  # requests that wait for their answer at once
    patience: float = 60.0  # without any progress


class Replay:
    """One replay; what it has counted can be reported at any time, also after it broke off."""

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
        self.trouble = ""  # the last answer that made us try again
        self.gave_up: str | None = None
        self._not_done: list[NotDone] = []
        self._following: dict[str, _OrderAnswer] = {}  # invoice -> the order as last seen
        self._accepting = Latencies()
        self._working = Latencies()
        self._usual_seconds = FIRST_POLL_SECONDS  # from placed to its end, lately
        self._started: float | None = None
        self._ended: float | None = None

    @property
    def key_prefix(self) -> str:
        """What the Idempotency-Key of every order of this replay begins with."""
        run = f"{self.run_name}-" if self.run_name else ""
        return f"replay-{run}{self.survey.fingerprint[:16]}-"

    @property
    def ended(self) -> int:
        """How many orders have come to their end, done or not."""
        return self.statuses.total()

    async def run(self) -> None:
        """Send everything and follow it to its end; return early, with `gave_up`, if nothing moves any more.

        Raises MalformedFile if the file has changed since it was surveyed, once all that was sent has come to its end.
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
        """Say what has been done so far."""
        seconds = (self._ended or time.monotonic()) - self._started if self._started else 0.0
        unfinished = [
            NotDone(invoice, order.order_id, f"still {order.status}")
            for invoice, order in list(self._following.items())[:MAX_EXAMPLES]
        ]
        return ReplayReport(
            file=str(self.path),
            to=self.to,
            run=self.run_name,
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

    # What a run tells us.

    def order_placed(self, invoice: str, order: _OrderAnswer, seconds: float, *, before: bool) -> None:
        """Count a 201, and keep the order in sight."""
        self.placed += 1
        self.placed_before += before
        self._accepting.add(seconds)
        self._following[invoice] = order

    def order_rejected(self, invoice: str, what: str) -> None:
        """Count an answer that no retry mends."""
        self.rejected += 1
        self._remember(NotDone(invoice, None, what))

    def order_seen(self, invoice: str, order: _OrderAnswer) -> bool:
        """Take in how an order is now; return whether it has come to its end."""
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
        """Give up an order that cannot be looked at."""
        order = self._following.pop(invoice)
        self.lost += 1
        self._remember(NotDone(invoice, order.order_id, what))

    def pauses(self) -> Iterator[float]:
        """Yield how long to wait before each look at an order: as one usually takes, then half that, and slower."""
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
    """The answer is none that a retry would mend; the message says what it was."""


class _Clients:
    """HTTP clients of one connection each.

    httpx looks at every connection of its pool for every request: one client with 24 of them took twice the CPU.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        # A proxy of the environment's is not for this machine itself.
        self._trust_env = not _is_loopback(url)
        self._tls = httpx.create_ssl_context(trust_env=self._trust_env)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def new(self) -> httpx.AsyncClient:
        """Return another one, closed with all others."""
        return await self._stack.enter_async_context(
            httpx.AsyncClient(base_url=self._url, timeout=REQUEST_SECONDS, verify=self._tls, trust_env=self._trust_env)
        )


class _Run:
    """The tasks of one replay; they live as long as `send_and_follow` runs."""

    def __init__(self, replay: Replay, clients: _Clients, deadline: asyncio.Timeout) -> None:
        self._replay = replay
        self._clients = clients
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._polling: asyncio.Queue[httpx.AsyncClient] = asyncio.Queue()
        self._invoices = read(replay.path)
        self._next_start = self._loop.time()
        self._malformed: MalformedFile | None = None

    async def send_and_follow(self) -> None:
        # As many as placements, or the looking would be slower than the placing.
        for _ in range(self._replay.limits.concurrency):
            self._polling.put_nowait(await self._clients.new())
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._replay.limits.concurrency):
                tasks.create_task(self._send(tasks, await self._clients.new()), name=f"replay-send-{number}")
        if self._malformed:
            raise self._malformed

    async def _send(self, tasks: asyncio.TaskGroup, client: httpx.AsyncClient) -> None:
        """Place one invoice after another, and leave each order to a task that follows it."""
        while True:
            await self._in_flight.acquire()
            accepted = self._next()
            if accepted is None:
                self._in_flight.release()
                return
            await self._keep_rate()
            order = await self._place(client, accepted)
            if order is None:
                self._in_flight.release()
            else:
                tasks.create_task(self._follow(accepted.number, order), name=f"replay-follow-{accepted.number}")

    def _next(self) -> AcceptedInvoice | None:
        try:
            return next((invoice for invoice in self._invoices if isinstance(invoice, AcceptedInvoice)), None)
        except MalformedFile as error:  # well-formed when it was surveyed: it has been changed since
            self._malformed = error
            return None

    async def _keep_rate(self) -> None:
        """Wait for our turn; a turn that came too late is not made up for, or a stall would end in a flood."""
        if rate := self._replay.limits.rate:
            turn = max(self._next_start, self._loop.time())
            self._next_start = turn + 1 / rate
            # A slow rate is no stall.
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

    async def _follow(self, invoice: str, order: _OrderAnswer) -> None:
        """Look at an order until it has come to its end.

        Its times are the service's own, so that looking late costs no precision.
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
        """Return the answer, asking again through outages for as long as the whole replay has patience."""
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
        """Something moved: the patience counts from now, or from a later moment that is known already."""
        end = (at or self._loop.time()) + self._replay.limits.patience
        if not self._deadline.expired() and end > (self._deadline.when() or 0):
            self._deadline.reschedule(end)


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
    """Return the seconds asked for; a date, which HTTP allows as well, is not worth the parsing."""
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
