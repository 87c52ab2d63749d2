"""The child process of crash isolation: `python -m orders.work.isolation_child`, started by `crash_isolation`.

Standard input: one `ChildJob` a line, as JSON. Standard output: `READY`, then one `ChildResult` a line. The child ends
with its parent, however that ended.
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
from orders.work.runner import Job, Runner, RunOutcome

PR_SET_PDEATHSIG = 1
READY = b"ready\n"
LARGEST_LINE = 64 << 20  # bytes


class ChildResult(msgspec.Struct, frozen=True):
    """The outcome of the job with this number."""

    number: int
    outcome: RunOutcome


class ChildJob(msgspec.Struct, frozen=True):
    """A job, and the number that its result carries."""

    number: int
    job: Job


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ChildJob).decode


async def run_jobs(settings: WorkerSettings, jobs: int, results: int) -> None:
    """Run each job as it arrives, all of them concurrently. `jobs` and `results` are file descriptors of pipes."""
    runner = Runner(handlers.load(settings.orders_handler), settings.database_url, timeout=settings.work_timeout)
    reader = asyncio.StreamReader(limit=LARGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(jobs, "rb")
    )
    with os.fdopen(results, "wb", buffering=0) as out:
        out.write(READY)

        async def work(child_job: ChildJob) -> None:
            # A single write of a short line is atomic, also if a handler ends the process a moment later.
            out.write(_encode(ChildResult(child_job.number, await runner(child_job.job))) + b"\n")

        async with asyncio.TaskGroup() as tasks:
            while line := await reader.readline():
                tasks.create_task(work(_decode(line)), name="isolated-job")
            # The parent is gone or has closed the pipe: no reader is left for further results.
            os._exit(0)


def main() -> None:
    """Run until the parent closes standard input; settings come from the environment, as in the worker."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is for the parent
    settings = WorkerSettings.read_or_exit("orders.work.isolation_child")
    # A handler that prints or reads must not touch the two pipes.
    jobs, results = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.flush()
    uvloop.run(run_jobs(settings, jobs, results))


if __name__ == "__main__":
    main()
