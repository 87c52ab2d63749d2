"""What every process does first: log lines, and a refusal to start that says in one line what is wrong."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, LiteralString

import psycopg
import uvloop

from orders.api.request_id import Lines
from orders.database import postgres
from orders.model.errors import StartupError
from orders.runtime.retry_pauses import backoff

WAIT_SECONDS = 30.0  # for a server that is not there yet: longer than one takes to start


def run(program: str, main: Callable[[], Coroutine[Any, Any, None]], log_level: str) -> None:
    """Run a process's main coroutine; end with one line and code 1 if it cannot start."""
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(Lines("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s"))
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


async def require_database(url: str, *statements: LiteralString) -> None:
    """Wait for PostgreSQL, then check that it has every column we lean on; raise StartupError if not."""
    end = time.monotonic() + WAIT_SECONDS
    for pause in backoff():
        try:
            conn = await postgres.connect(url, "orders-startup")
        except psycopg.Error as error:
            if time.monotonic() > end:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise StartupError(
                    f"no connection to PostgreSQL in {WAIT_SECONDS:.0f} s ({reason}): is it running, and is "
                    "DATABASE_URL right?"
                ) from None
            await asyncio.sleep(pause)
            continue
        try:
            await postgres.require(conn, *statements)
            return
        finally:
            await postgres.close(conn)
