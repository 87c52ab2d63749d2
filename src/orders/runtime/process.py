"""Start and stop a process: log lines, one line if it cannot start, and signals that only set a flag."""

import asyncio
import gc
import logging
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import uvloop

from orders.model.errors import StartupError

WAIT_SECONDS = 30.0  # for a server that is not there yet: longer than one takes to start

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that a task answers


def run(program: str, main: Callable[[], Coroutine[Any, Any, None]], log_level: str) -> None:
    """Run a process's main coroutine; end with one line and code 1 if it cannot start."""
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s"))
    logging.basicConfig(level=log_level, handlers=[lines], force=True)
    logging.Formatter.converter = time.gmtime
    logging.getLogger("uvicorn").setLevel("WARNING")
    logging.getLogger("aiormq").setLevel("CRITICAL")  # it logs what we handle
    try:
        uvloop.run(main())
    except StartupError as error:
        sys.stdout.flush()
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(1)


class LogFormatter(logging.Formatter):
    """Formats log lines; each names the request during which it was written."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record; outside of a request it names none."""
        request_id = REQUEST_ID.get()
        record.request = f" [{request_id}]" if request_id else ""
        return super().format(record)


def spare_the_collector() -> None:
    """Let the garbage collector skip all objects that exist now, and run less often.

    Reference counts free nearly all objects of a request. With the default thresholds the collector would traverse the
    objects of a hundred open requests several times during each of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def take_all_descriptors() -> None:
    """Raise the limit of file descriptors to the hard limit: the soft one is often 1,024, and each stream holds one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def on_stop_signals(stop: Any) -> None:
    """Call `stop()`, which only sets a flag, at SIGTERM and SIGINT. Needs a running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
