"""End a process whose background task crashed: a restarted process is better than one that only looks alive."""

import asyncio
import logging
import signal

log = logging.getLogger(__name__)


def stop_the_process_if_it_crashed(task: asyncio.Task[None]) -> None:
    """Stop the process as SIGTERM does if this task crashed; requests in hand are finished. A task's done callback."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%s crashed: the process stops", task.get_name(), exc_info=error)
        signal.raise_signal(signal.SIGTERM)
