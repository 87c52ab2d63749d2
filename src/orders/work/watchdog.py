"""The watchdog of the event loop: it ends a worker whose handler blocks it."""

import asyncio
import faulthandler

BLOCKED_SECONDS = 10.0  # beyond WORK_TIMEOUT: a loop that stands still for longer is blocked by a handler


async def watch_the_loop(timeout: float) -> None:
    """End the process with a traceback if the event loop stands still for `timeout` + BLOCKED_SECONDS seconds.

    The orders in hand are suspects from then on; crash isolation finds the one whose handler blocks.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(timeout + BLOCKED_SECONDS, exit=True)
            await asyncio.sleep(1)
    finally:
        faulthandler.cancel_dump_traceback_later()
