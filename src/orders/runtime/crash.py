"""A background task ends only when it is told to: anything else is a bug, and a fresh process beats a deaf one."""

import asyncio
import logging
import signal

log = logging.getLogger(__name__)


def stop_the_process_if_it_crashed(task: asyncio.Task[None]) -> None:
    """Be a task's done callback: a crash ends the process as SIGTERM does, so that requests in hand are finished."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%s crashed: the process stops", task.get_name(), exc_info=error)
        signal.raise_signal(signal.SIGTERM)
