"""Loaded by Python itself into the processes of a chaos run, by PYTHONPATH, and by nothing else.

It wraps functions of the product as their modules are imported: each wrapped call looks for an order in a file, and
obeys it once. So the product has no hook of its own, and nothing to pay for when nobody breaks it. It also moves the
clock that the process sees.

Nothing of the product is imported here, and next to nothing else.
"""

import asyncio
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# A point is a module, a function or method in it, and the side of it.
POINTS: dict[str, tuple[str, str, str]] = {
    "C1": ("orders.database.place_orders", "place_orders", "before"),  # a batch of orders, not sent yet
    "C4": ("orders.database.place_orders", "place_orders", "after"),  # committed, not answered
    "C7": ("relay.outbox_table", "claim", "after"),
    "C8": ("relay.publisher", "Publisher.publish", "before"),
    "C10": ("relay.outbox_table", "settle", "before"),  # confirmed, not marked
    "C11": ("relay.outbox_table", "settle", "after"),  # marked, not committed
    "C12": ("relay.outbox_table", "save_mark", "before"),  # committed, the low-water mark not saved
    "C15": ("orders.database.claim_orders", "claim_orders", "before"),  # delivered, nothing written
    "C16": ("orders.database.claim_orders", "claim_orders", "after"),  # claimed, the handler not started
    "C17": ("orders.database.finish_orders", "finish_orders", "before"),  # the effect is there, the order not finished
    "C18": ("orders.database.finish_orders", "finish_orders", "after"),  # finished, not acked
}

# Async methods that run as long as their process does: with each runs a task that counts the tasks.
MAINS = {("orders.runtime.http_server", "HttpServer.serve"), ("relay.forward", "Forwarder.run")}

COUNT_SECONDS = 1.0
SLEEP_SECONDS = 10.0
BLOCK_SECONDS = 5.0

_folder = Path(os.environ["CHAOS_FOLDER"], "inside")
_order = _folder / f"{os.environ['CHAOS_PROCESS']}.json"
_clock = _folder / f"{os.environ['CHAOS_PROCESS']}.clock"
_tasks = _folder / f"{os.environ['CHAOS_PROCESS']}.tasks"


async def reach(point: str) -> None:
    """Obey the order for this point, if there is one, once."""
    try:
        order = json.loads(_order.read_bytes())
    except (OSError, ValueError):
        return
    if order["point"] != point:
        return
    try:
        os.unlink(_order)
    except FileNotFoundError:
        return  # another task was faster
    match order["action"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise RuntimeError(f"chaos at {point}")
        case "deadlock" | "serialization" | "lock":
            import psycopg  # there by now: it is its statement that fails

            errors = psycopg.errors
            raise {
                "deadlock": errors.DeadlockDetected,
                "serialization": errors.SerializationFailure,
                "lock": errors.LockNotAvailable,
            }[order["action"]](f"chaos at {point}")
        case "sleep":
            await asyncio.sleep(SLEEP_SECONDS)
        case "block":
            time.sleep(BLOCK_SECONDS)  # noqa: ASYNC251  # to block the loop is what it is for


def wrapped(function: Callable[..., Any], before: list[str], after: list[str]) -> Callable[..., Any]:
    """The same async function, with points on both sides."""

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        for point in before:
            await reach(point)
        result = await function(*args, **kwargs)
        for point in after:
            await reach(point)
        return result

    return call


async def count_tasks() -> None:
    """Tell how many tasks there are, ourselves not counted, again and again."""
    while True:
        beside = _tasks.with_suffix(".new")
        beside.write_text(str(len(asyncio.all_tasks()) - 1))
        beside.replace(_tasks)
        await asyncio.sleep(COUNT_SECONDS)


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same async function, with the count beside it."""

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        counting = asyncio.create_task(count_tasks(), name="chaos: count tasks")
        try:
            return await function(*args, **kwargs)
        finally:
            counting.cancel()

    return call


def patch(module: ModuleType) -> None:
    """Wrap what has points in a module that was just imported."""
    names = {name for where, name, _ in POINTS.values() if where == module.__name__}
    for name in names | {name for where, name in MAINS if where == module.__name__}:
        owner: Any = module
        *path, last = name.split(".")
        for each in path:
            owner = getattr(owner, each)
        sides = {
            side: [p for p, (where, what, at) in POINTS.items() if (where, what, at) == (module.__name__, name, side)]
            for side in ("before", "after")
        }
        function = getattr(owner, last)
        if name in names:
            function = wrapped(function, sides["before"], sides["after"])
        if (module.__name__, name) in MAINS:
            function = counted(function)
        setattr(owner, last, function)


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        patch(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in {where for where, *_ in (*POINTS.values(), *MAINS)}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


_true_time, _true_time_ns = time.time, time.time_ns
_offset, _looked = 0.0, 0.0


def offset() -> float:
    """How far the clock of this process is off, as its file says; looked up ten times a second."""
    global _offset, _looked
    if time.monotonic() - _looked > 0.1:
        _looked = time.monotonic()
        try:
            _offset = float(_clock.read_text())
        except (OSError, ValueError):
            _offset = 0.0
    return _offset


def shifted_time() -> float:
    return _true_time() + offset()


def shifted_time_ns() -> int:
    return _true_time_ns() + int(offset() * 1e9)


sys.meta_path.insert(0, _Finder())
time.time, time.time_ns = shifted_time, shifted_time_ns
