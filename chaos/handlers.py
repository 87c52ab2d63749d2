"""The work of the workers: wait a little, then have an effect, which is a line on disk before the order is done.

ORDERS_HANDLER=chaos.handlers:work; CHAOS_FOLDER says where the file is.
"""

import asyncio
import os
import random
import time
from pathlib import Path

import msgspec

from chaos.effect import Effect
from orders.order import Order

FOLDER = Path(os.environ["CHAOS_FOLDER"])
PROCESS = os.environ["CHAOS_PROCESS"]
LONGEST_SECONDS = 0.05


class Deadly(Exception):
    """This order's own fault, at each of its attempts."""


async def work(order: Order) -> None:
    """Have the effect; refuse those orders that ask for it by their reference."""
    await asyncio.sleep(random.uniform(0, LONGEST_SECONDS))
    if order.reference == "refuse":
        raise Deadly("the order asked for it")
    effect = Effect(str(order.order_id), order.version, order.attempts, order.total_minor or 0, PROCESS, time.time())
    await asyncio.to_thread(note, effect)


def note(effect: Effect) -> None:
    """One write for one line, so that processes do not tear each other's."""
    file = os.open(FOLDER / "effects.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, msgspec.json.encode(effect) + b"\n")
        os.fdatasync(file)
    finally:
        os.close(file)
