"""The watchdog of the event loop: it warns while a handler blocks the loop, and ends a worker that stays blocked."""

import asyncio
import contextlib
import faulthandler
import logging
import sys
import threading
import time
import traceback

from prometheus_client import Counter

log = logging.getLogger(__name__)

BLOCKED_SECONDS = 10.0  # beyond WORK_TIMEOUT: a loop that stands still for longer is blocked by a handler
PING_SECONDS = 0.5
WARN_SECONDS = 2.0  # below what the broker's heartbeat and other workers wait for
STACK_FRAMES = 8

BLOCKED = Counter("orders_worker_loop_blocked_total", "Times that a handler blocked the event loop for 2 s or more")


async def watch_the_loop(timeout: float) -> None:
    """End the process with a traceback if the event loop stands still for `timeout` + BLOCKED_SECONDS seconds.

    The orders in hand are suspects from then on; crash isolation finds the one whose handler blocks. A block of more
    than WARN_SECONDS is logged while it lasts, with its stack: a blocking call belongs into a thread.
    """
    stop = threading.Event()
    watch = threading.Thread(target=_warn, args=(asyncio.get_running_loop(), stop), name="watchdog", daemon=True)
    watch.start()
    try:
        while True:
            faulthandler.dump_traceback_later(timeout + BLOCKED_SECONDS, exit=True)
            await asyncio.sleep(1)
    finally:
        faulthandler.cancel_dump_traceback_later()
        stop.set()
        await asyncio.to_thread(watch.join)


def _warn(loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
    """Ping the loop until `stop` is set; log once for each ping that it leaves unanswered for WARN_SECONDS."""
    thread = threading.main_thread().ident or 0
    while not stop.is_set():
        answered = threading.Event()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker ends
            loop.call_soon_threadsafe(answered.set)
        began = time.monotonic()
        is_logged = False
        while not answered.wait(PING_SECONDS) and not stop.is_set():
            seconds = time.monotonic() - began
            # A process that was stopped finds much time gone; the loop then has had no chance yet.
            if not is_logged and WARN_SECONDS <= seconds < WARN_SECONDS + 2 * PING_SECONDS:
                is_logged = True
                BLOCKED.inc()
                task = asyncio.current_task(loop)
                stack = traceback.extract_stack(sys._current_frames().get(thread))[-STACK_FRAMES:]
                log.warning(
                    "%s blocks the event loop for %.1f s, and with it all orders in hand; run blocking code in a "
                    "thread, see docs/worker.md:\n%s",
                    task.get_name() if task else "something", seconds, "".join(traceback.format_list(stack)),
                )  # fmt: skip
        stop.wait(PING_SECONDS)
