"""Orders that were in hand when a worker vanished: one of them may be what ended it.

They run again together in a child process. When it dies, those that had no answer yet are halved, and each half runs in
a child of its own, until one dies alone: that one is poison. Its neighbours are not punished with it.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from prometheus_client import Counter

from orders.runtime.crash import stop_the_process_if_it_crashed
from orders.runtime.retry_pauses import backoff
from orders.work.runner import Died, Job, Outcome
from orders.work.trial import LARGEST_LINE, READY, Answer, Question

log = logging.getLogger(__name__)

CHILD_DEATHS = Counter("orders_worker_child_deaths_total", "Child processes that died while suspects ran in them")

LANES = 4  # groups on trial side by side, so that one that hangs holds up no other
GROUP = 500
DEATHS_ALONE = 2  # once may have been somebody's kill -9
START_SECONDS = 15.0
SLACK_SECONDS = 5.0  # beyond WORK_TIMEOUT, after which a silent child is one whose loop a handler blocks

Item = TypeVar("Item")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Answer).decode


class _Case:
    """A job on trial, and whoever waits for its outcome."""

    __slots__ = ("deaths", "job", "outcome")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.deaths = 0
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Suspects:
    """Runs jobs in child processes; call it as one calls a Runner."""

    def __init__(self, *, timeout: float) -> None:
        self.timeout = timeout
        self._waiting: deque[_Case] = deque()
        self._wanted = asyncio.Semaphore(0)
        self._lanes: list[asyncio.Task[None]] = []
        self._children: set[asyncio.subprocess.Process] = set()

    async def __aenter__(self) -> "Suspects":
        self._lanes = [asyncio.create_task(self._lane(), name=f"suspects-{number}") for number in range(LANES)]
        for lane in self._lanes:
            lane.add_done_callback(stop_the_process_if_it_crashed)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        for child in list(self._children):  # those whose end was cut short
            await self._end(child)

    async def __call__(self, job: Job) -> Outcome:
        """Run the handler for a suspect; Died if it has proven to be poison."""
        case = _Case(job)
        self._waiting.append(case)
        self._wanted.release()
        return await case.outcome

    async def _lane(self) -> None:
        while True:
            await self._wanted.acquire()
            group: list[_Case] = []
            while self._waiting and len(group) < GROUP:
                group.append(self._waiting.popleft())
            if group := [case for case in group if not case.outcome.done()]:
                await self._try(group)

    async def _try(self, group: Sequence[_Case]) -> None:
        """Run a group until each has an outcome, however often its child dies."""
        end = await self._run_together(group)
        left = [case for case in group if not case.outcome.done()]
        if not left:
            return
        CHILD_DEATHS.inc()
        log.warning("a child process %s with %s suspects in hand", end, len(left))
        if len(group) == 1:
            left[0].deaths += 1
        if left[0].deaths >= DEATHS_ALONE:
            left[0].settle(Died(f"the process that ran it alone {end}, {left[0].deaths} times"))
            return
        for part in halves(left):
            await self._try(part)

    async def _run_together(self, group: Sequence[_Case]) -> str:
        """Settle what a fresh child answers; return how the child ended."""
        child = await self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            async with asyncio.timeout(self.timeout + SLACK_SECONDS):
                with contextlib.suppress(OSError):  # it is dead already: the end of its output says so
                    for number, case in enumerate(group):
                        child.stdin.write(_encode(Question(number, case.job)) + b"\n")
                    await child.stdin.drain()
            for _ in group:
                async with asyncio.timeout(self.timeout + SLACK_SECONDS):
                    line = await child.stdout.readline()
                if not line.endswith(b"\n"):
                    break
                answer = _decode(line)
                group[answer.number].settle(answer.outcome)
        except TimeoutError:
            return f"gave no sign of life for {self.timeout + SLACK_SECONDS:g} s"
        finally:
            await self._end(child)
        return _end_of(child.returncode)

    async def _start(self) -> asyncio.subprocess.Process:
        """Start a child that has loaded its handler; one that dies before it got a job is nobody's failure."""
        for pause in backoff(first=0.2, most=5):
            try:
                child = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "orders.work.trial",
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LARGEST_LINE,
                )  # fmt: skip
            except OSError as error:  # no memory, no process, no file left: weather
                log.warning("a child process did not start: %s", error)
                await asyncio.sleep(pause)
                continue
            self._children.add(child)
            assert child.stdout is not None
            try:
                async with asyncio.timeout(START_SECONDS):
                    if await child.stdout.readline() == READY:
                        return child
            except TimeoutError:
                pass
            await self._end(child)
            log.warning("a child process did not start: it %s", _end_of(child.returncode))
            await asyncio.sleep(pause)
        raise AssertionError("unreachable: the pauses never end")

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        """Have a child end: one that is on its way out keeps its own exit code."""
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        if child.stdout.at_eof():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await child.wait()
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        self._children.discard(child)


def halves(group: Sequence[Item]) -> list[Sequence[Item]]:
    """Split those among whom the guilty one is; one alone cannot be split."""
    middle = len(group) // 2
    return [half for half in (group[:middle], group[middle:]) if half]


def _end_of(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"exited with code {returncode}"
