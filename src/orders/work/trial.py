"""The child process in which suspects are run: `python -m orders.work.trial`, started by orders/work/suspects.py.

A job a line comes in, an outcome a line goes out. It ends with its parent, whatever ended that.
"""

import asyncio
import ctypes
import os
import signal
import sys

import msgspec
import uvloop

from orders import handlers
from orders.runtime.settings import WorkerSettings
from orders.work.runner import Job, Outcome, Runner

PR_SET_PDEATHSIG = 1
READY = b"ready\n"
LARGEST_LINE = 64 << 20


class Answer(msgspec.Struct, frozen=True):
    """What came of the job with this number."""

    number: int
    outcome: Outcome


class Question(msgspec.Struct, frozen=True):
    """A job and the number that its answer is to carry."""

    number: int
    job: Job


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Question).decode


async def answer_all(settings: WorkerSettings, questions: int, answers: int) -> None:
    """Run every job as it comes, all of them side by side."""
    runner = Runner(handlers.load(settings.orders_handler), settings.database_url, timeout=settings.work_timeout)
    reader = asyncio.StreamReader(limit=LARGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(questions, "rb")
    )
    with os.fdopen(answers, "wb", buffering=0) as out:
        out.write(READY)

        async def work(question: Question) -> None:
            # One write of a short line: whole or not at all, also when a handler ends the process a moment later.
            out.write(_encode(Answer(question.number, await runner(question.job))) + b"\n")

        async with asyncio.TaskGroup() as tasks:
            while line := await reader.readline():
                tasks.create_task(work(_decode(line)), name="trial")
            # The parent is gone, or has no use for us any more; nobody would hear the rest.
            os._exit(0)


def main() -> None:
    """Run until the parent closes our standard input."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is for the parent
    settings = WorkerSettings.read_or_exit("orders.work.trial")
    # What a handler prints or reads is not to meet what we say and hear.
    questions, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.flush()
    uvloop.run(answer_all(settings, questions, answers))


if __name__ == "__main__":
    main()
