"""Wait for a fact instead of sleeping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

T = TypeVar("T")

PAUSE_SECONDS = 0.02


@overload
async def eventually(fact: Callable[[], Awaitable[T]], within: float = ...) -> T: ...
@overload
async def eventually(fact: Callable[[], T], within: float = ...) -> T: ...
async def eventually(fact: Callable[[], T | Awaitable[T]], within: float = 10.0) -> T:
    """Ask until the answer is true, and return it; an AssertionError counts as not yet.

    Any other error passes at once: what a fact may run into, it has to say itself.
    """
    deadline = time.monotonic() + within
    while True:
        late = time.monotonic() > deadline
        try:
            answer = fact()
            value = cast(T, await answer if inspect.isawaitable(answer) else answer)
        except AssertionError:
            if late:
                raise
        else:
            if value:
                return value
            if late:
                raise AssertionError(f"not within {within} s; the last answer was {value!r}")
        await asyncio.sleep(PAUSE_SECONDS)
