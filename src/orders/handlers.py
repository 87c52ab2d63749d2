"""The work itself: an async function of the order, chosen by ORDERS_HANDLER.

It may be run again after a crash, so what it does outside of this database needs a key of its own: the order's id.
"""

import asyncio
import functools
import importlib
import inspect
import random
from collections.abc import Awaitable, Callable

from orders.errors import StartupError
from orders.order import Order
from orders.settings import SettingsError, WaitSettings

Handler = Callable[[Order], Awaitable[None]]


@functools.cache
def _wait() -> WaitSettings:
    return WaitSettings.read()


async def wait_a_little(order: Order) -> None:
    """Stand in for real work: wait a random time between WORK_MIN_SECONDS and WORK_MAX_SECONDS."""
    await asyncio.sleep(random.uniform(_wait().work_min_seconds, _wait().work_max_seconds))


async def do_nothing(order: Order) -> None:
    """Finish at once: for measuring everything but the work."""


def load(name: str) -> Handler:
    """Return the function that `module:function` names; raise StartupError if it is none of ours to run."""
    module_name, _, function_name = name.partition(":")
    try:
        handler = getattr(importlib.import_module(module_name), function_name)
        if handler is wait_a_little:
            _wait()  # a wrong setting of it stops the process here, not the first order
    except (ImportError, AttributeError) as error:
        raise StartupError(f"ORDERS_HANDLER is wrong: {error}") from None
    except SettingsError as error:
        raise StartupError(str(error)) from None
    if not inspect.iscoroutinefunction(handler):
        raise StartupError(f"ORDERS_HANDLER is wrong: {name} is not an async function")
    return handler  # type: ignore[no-any-return]
