"""Handlers: the function that works an order, named by the setting ORDERS_HANDLER. Public API.

    async def handle(order): ...          the worker finishes the order, batched with others
    async def handle(order, conn): ...    the handler's own transaction also finishes the order
    def handle(order): ...                the same as the first, in a thread: for code that blocks

`order` is an `orders.model.order.Order`. `conn` is a psycopg connection with an open transaction: its rows are
committed together with the end of the order, exactly once. A call to any other system may be repeated after a crash, so
pass `order.idempotency_key`, which stays the same through retries, crashes and redrives.

A handler that returns has succeeded: the order is `done`. If it raises `Refuse`, the order is `failed` for good. If it
raises `Retry` or any other error, or takes longer than WORK_TIMEOUT, it runs again later, WORK_MAX_ATTEMPTS times at
most; then the order is `failed`.
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

__all__ = [
    "BlockingHandler",
    "Handler",
    "PlainHandler",
    "Refuse",
    "Retry",
    "TransactionalHandler",
    "do_nothing",
    "wait_a_little",
]

PlainHandler = Callable[[Order], Awaitable[object]]
BlockingHandler = Callable[[Order], object]
TransactionalHandler = Callable[[Order, AsyncConnection], Awaitable[object]]
Handler = PlainHandler | TransactionalHandler | BlockingHandler

LONGEST_AFTER_SECONDS = 30 * 86400.0  # a time that PostgreSQL can add to now


@functools.cache
def _wait() -> WaitSettings:
    return WaitSettings.read()


# The docstrings of the two are also their messages, for a handler that gives no reason.


class Retry(OrdersError):
    """The work could not be done this time."""

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        """`after`: seconds until the next attempt, 30 days at most; without it they double from attempt to attempt.

        Raises TypeError or ValueError if `after` is no finite number: a failure of the handler, like any other error.
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
    """Wait a random time between WORK_MIN_SECONDS and WORK_MAX_SECONDS, in place of real work."""
    await asyncio.sleep(random.uniform(_wait().work_min_seconds, _wait().work_max_seconds))


async def do_nothing(order: Order) -> None:
    """Return at once, to measure everything but the work."""


def load(name: str) -> Handler:
    """Import the handler that `module:function` names; raise StartupError if it is not there, or is no handler."""
    module_name, _, function_name = name.partition(":")
    try:
        handler = getattr(importlib.import_module(module_name), function_name)
        if handler is wait_a_little:
            _wait()  # a wrong setting stops the process at start
    except (ImportError, AttributeError) as error:
        raise StartupError(f"ORDERS_HANDLER is wrong: {error}") from None
    except SettingsError as error:
        raise StartupError(str(error)) from None
    if not inspect.isroutine(handler):
        raise StartupError(f"ORDERS_HANDLER is wrong: {name} is not a function")
    if len(inspect.signature(handler).parameters) not in {1, 2}:
        raise StartupError(f"ORDERS_HANDLER is wrong: {name} takes neither (order) nor (order, conn)")
    if wants_connection(handler) and is_blocking(handler):
        raise StartupError(f"ORDERS_HANDLER is wrong: {name} takes (order, conn), so it has to be async")
    return handler


def wants_connection(handler: Handler) -> bool:
    """Whether a handler takes a connection."""
    return len(inspect.signature(handler).parameters) == 2


def is_blocking(handler: Handler) -> bool:
    """Whether a handler is a plain function, which runs in a thread."""
    return not inspect.iscoroutinefunction(handler)
