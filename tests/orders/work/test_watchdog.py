"""A handler that blocks the event loop."""

import subprocess
import sys

BLOCKING = """
import asyncio, time
from orders.work import watchdog

watchdog.BLOCKED_SECONDS = 0.2

async def main():
    watching = asyncio.create_task(watchdog.watch_the_loop(0.1))
    await asyncio.sleep(0)
    if {blocks}:
        time.sleep(30)
    watching.cancel()

asyncio.run(main())
time.sleep(0.5)
"""


def test_a_blocked_loop_ends_the_process() -> None:
    """
    The process ends with a traceback that shows the line that blocks; a loop that turns ends nothing.
    """
    blocked, sound = (
        subprocess.run([sys.executable, "-c", BLOCKING.format(blocks=blocks)], capture_output=True, timeout=20)
        for blocks in (True, False)
    )
    assert blocked.returncode == 1
    assert b"Timeout" in blocked.stderr
    assert b"in main" in blocked.stderr
    assert (sound.returncode, sound.stderr) == (0, b"")
