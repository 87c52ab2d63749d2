"""Crash isolation: find the order whose handler ends its process, without harm to the others.

An order that was in hand when its worker vanished is a *suspect*: its handler may have ended that worker. Suspects run
again together in a child process. If the child dies, the suspects without an outcome are split in halves, and each half
runs in a child of its own. An order whose child dies twice while it runs alone is poison; the others get their own
outcome.
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
from orders.work.isolation_child import LARGEST_LINE, READY, ChildJob, ChildResult
from orders.work.runner import ChildDied, Job, RunOutcome

log = logging.getLogger(__name__)

CHILD_DEATHS = Counter("orders_worker_child_deaths_total", "Child processes that died while suspects ran in them")

PARALLEL_GROUPS = 4  # so that a group that hangs does not hold up the others
MAX_GROUP = 500  # jobs in one child
DEATHS_ALONE = 2  # one death may come from outside, such as kill -9
START_SECONDS = 15.0
SLACK_SECONDS = 5.0  # beyond WORK_TIMEOUT; a handler blocks the event loop of a child that is silent for longer

Item = TypeVar("Item")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ChildResult).decode


class _IsolatedJob:
    """A job, the number of times that its child died while it ran alone, and the future of its outcome."""

    __slots__ = ("deaths", "job", "outcome")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.deaths = 0
        self.outcome: asyncio.Future[RunOutcome] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: RunOutcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class CrashIsolation:
    """Runs jobs in child processes. It is called like a `Runner`: a `Job` in, its `RunOutcome` out."""

    def __init__(self, *, timeout: float) -> None:
        self.timeout = timeout
        self._waiting: deque[_IsolatedJob] = deque()
        self._available = asyncio.Semaphore(0)
        self._group_tasks: list[asyncio.Task[None]] = []
        self._children: set[asyncio.subprocess.Process] = set()

    async def __aenter__(self) -> "CrashIsolation":
        self._group_tasks = [
            asyncio.create_task(self._run_groups(), name=f"crash-isolation-{number}")
            for number in range(PARALLEL_GROUPS)
        ]
        for task in self._group_tasks:
            task.add_done_callback(stop_the_process_if_it_crashed)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._group_tasks:
            task.cancel()
        await asyncio.gather(*self._group_tasks, return_exceptions=True)
        for child in list(self._children):  # whose end was cancelled
            await self._end(child)

    async def __call__(self, job: Job) -> RunOutcome:
        """Run the handler for a suspect; return `ChildDied` if its child died DEATHS_ALONE times, alone."""
        isolated = _IsolatedJob(job)
        self._waiting.append(isolated)
        self._available.release()
        return await isolated.outcome

    async def _run_groups(self) -> None:
        while True:
            await self._available.acquire()
            group: list[_IsolatedJob] = []
            while self._waiting and len(group) < MAX_GROUP:
                group.append(self._waiting.popleft())
            if group := [isolated for isolated in group if not isolated.outcome.done()]:
                await self._run_until_settled(group)

    async def _run_until_settled(self, group: Sequence[_IsolatedJob]) -> None:
        """Run a group, split again after each death of a child, until each job has an outcome."""
        end = await self._run_together(group)
        left = [isolated for isolated in group if not isolated.outcome.done()]
        if not left:
            return
        CHILD_DEATHS.inc()
        log.warning("a child process %s with %s suspects in hand", end, len(left))
        if len(group) == 1:
            left[0].deaths += 1
        if left[0].deaths >= DEATHS_ALONE:
            left[0].settle(ChildDied(f"the process that ran it alone {end}, {left[0].deaths} times"))
            return
        for half in halves(left):
            await self._run_until_settled(half)

    async def _run_together(self, group: Sequence[_IsolatedJob]) -> str:
        """Run a group in a new child, settle each job that it answers, and return how the child ended, for the log."""
        child = await self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            async with asyncio.timeout(self.timeout + SLACK_SECONDS):
                with contextlib.suppress(OSError):  # the child is dead: its output ends, too
                    for number, isolated in enumerate(group):
                        child.stdin.write(_encode(ChildJob(number, isolated.job)) + b"\n")
                    await child.stdin.drain()
            for _ in group:
                async with asyncio.timeout(self.timeout + SLACK_SECONDS):
                    line = await child.stdout.readline()
                if not line.endswith(b"\n"):
                    break
                result = _decode(line)
                group[result.number].settle(result.outcome)
        except TimeoutError:
            return f"gave no sign of life for {self.timeout + SLACK_SECONDS:g} s"
        finally:
            await self._end(child)
        return _end_of(child.returncode)

    async def _start(self) -> asyncio.subprocess.Process:
        """Start a child and wait until it has loaded the handler; retry for ever, since no order is at fault here."""
        for pause in backoff(first=0.2, longest=5):
            try:
                child = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "orders.work.isolation_child",
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LARGEST_LINE,
                )  # fmt: skip
            except OSError as error:  # no memory, no process or no descriptor left: it passes
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
        """End a child; one that is exiting keeps its own exit code."""
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
    """Split a group in two, in order; a group of one stays whole. No half is empty."""
    middle = len(group) // 2
    return [half for half in (group[:middle], group[middle:]) if half]


def _end_of(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"exited with code {returncode}"
