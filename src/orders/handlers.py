"""The work itself: an async function of the order, chosen by ORDERS_HANDLER.

    async def handle(order): ...          finished in batches
    async def handle(order, conn): ...    a transaction of its own, in which the order is finished too

`conn` is an open psycopg transaction: what a handler writes there is committed together with the order's end, exactly
once. Everything outside of this database may be asked for again after a crash, so give it `order.idempotency_key`,
which stays the same through retries, crashes and redrives.

A handler that returns has done its work. One that raises `Refuse` fails the order for good; one that raises `Retry`,
or anything else, or that takes longer than WORK_TIMEOUT, is run again later, WORK_MAX_ATTEMPTS times at most.
"""

import asyncio
import functools
import importlib
import inspect
import math
import random
from collections.abc import Awaitable, Callable

from psycopg import AsyncConnection

from orders.model.errors import OrdersError, StartupError
from orders.model.order import Order
from orders.runtime.settings import SettingsError, WaitSettings

PlainHandler = Callable[[Order], Awaitable[object]]
TransactionalHandler = Callable[[Order, AsyncConnection], Awaitable[object]]
Handler = PlainHandler | TransactionalHandler

LONGEST_AFTER_SECONDS = 30 * 86400.0  # a time that the database can add to now, and that somebody may still wait for


@functools.cache
def _wait() -> WaitSettings:
    return WaitSettings.read()


class Retry(OrdersError):
    """The work could not be done this time."""

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        """`after`: seconds until the next attempt, 30 days at most; without it they double from attempt to attempt.

        Whatever is no number of seconds is refused here, where it is the handler's own failure.
        """
        super().__init__(reason)
        if after is not None:
            if not isinstance(after, int | float):
                raise TypeError(f"Retry's `after` is a number of seconds, not a {type(after).__name__}")
            if not math.isfinite(after):
                raise ValueError(f"Retry's `after` is a number of seconds, not {after}")
            after = min(max(0.0, after), LONGEST_AFTER_SECONDS)
        self.after = after


class Refuse(OrdersError):
    """The work can never be done."""


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
    if len(inspect.signature(handler).parameters) not in {1, 2}:
        raise StartupError(f"ORDERS_HANDLER is wrong: {name} takes neither (order) nor (order, conn)")
    return handler  # type: ignore[no-any-return]


def wants_connection(handler: Handler) -> bool:
    """Whether a handler takes a transaction of its own."""
    return len(inspect.signature(handler).parameters) == 2
