"""The work of the workers: wait a little, then have an effect.

ORDERS_HANDLER=dev.chaos.handlers:work: it is a line on disk before the order is done, in the folder CHAOS_FOLDER.
ORDERS_HANDLER=dev.chaos.handlers:work_in_transaction: it is a row, committed together with the order's end.
"""

import asyncio
import os
import random
import time
from pathlib import Path

import msgspec
from psycopg import AsyncConnection

from dev.chaos.effect import FAILS_FIRST, Effect
from orders.handlers import Refuse
from orders.model.order import Order

FOLDER = Path(os.environ["CHAOS_FOLDER"])
PROCESS = os.environ["CHAOS_PROCESS"]
# Open as long as the process: without descriptors left (P7) it is the worker that has to go on, not this handler.
EFFECTS = os.open(FOLDER / "effects.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
BLOCK = FOLDER / f"{PROCESS}.block"
LONGEST_SECONDS = 0.05
CLAIMED_FIRST = 2  # the version of an order that was placed and claimed; failed and redriven it has a higher one

INSERT = "INSERT INTO chaos_effects VALUES (%s, %s, %s, %s, %s, %s)"


async def work(order: Order) -> None:
    """Have the effect outside of the database, where a crash may lead to a repeat."""
    effect = await prepare(order)
    await asyncio.to_thread(note, effect)


async def work_in_transaction(order: Order, conn: AsyncConnection) -> None:
    """Have the effect in the transaction that finishes the order: exactly once."""
    effect = await prepare(order)
    await conn.execute(INSERT, msgspec.structs.astuple(effect))


async def prepare(order: Order) -> Effect:
    """Wait, and refuse those orders that ask for it by their reference, until they are redriven."""
    await asyncio.sleep(random.uniform(0, LONGEST_SECONDS))
    block_if_told()
    if order.reference == FAILS_FIRST and order.version <= CLAIMED_FIRST:
        raise Refuse("the order asked for it")
    return Effect(str(order.order_id), order.version, order.attempts, order.total_minor or 0, PROCESS, time.time())


def block_if_told() -> None:
    """Block the event loop once for as many seconds as P13 asks for."""
    try:
        seconds = float(BLOCK.read_text())
        BLOCK.unlink()
    except OSError:  # it is not asked for; or no descriptor is left (P7), which is no fault of the order's
        return
    time.sleep(seconds)


def note(effect: Effect) -> None:
    """One write for one line, so that processes do not tear each other's."""
    os.write(EFFECTS, msgspec.json.encode(effect) + b"\n")
    os.fdatasync(EFFECTS)
