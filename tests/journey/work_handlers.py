"""Handlers that fail in every way there is, as the reference of their order and chance decide."""

import asyncio
import os
import random
import time
from pathlib import Path

from orders.handlers import Refuse, Retry
from orders.model.order import Order
from tests.journey.placing import DEADLY, REFUSED

NAP_SECONDS = (0.005, 0.03)
BLOCKING = "blocks"
BLOCK_SECONDS = 12.0  # longer than the broker waits for a heartbeat, and the server for a sign of life


async def mixed(order: Order) -> None:
    """Exit on a deadly order, refuse another; of the rest 30 % fail, and 0.5 % hang, each time anew."""
    if order.reference == DEADLY:
        os._exit(7)
    if order.reference == REFUSED:
        raise Refuse("no stock")
    await asyncio.sleep(random.uniform(*NAP_SECONDS))
    chance = random.random()
    if chance < 0.005:
        await asyncio.sleep(3600)
    if chance < 0.15:
        raise Retry("busy")
    if chance < 0.3:
        raise RuntimeError("a bug that shows now and then")


def write_down(order: Order) -> None:
    with Path(os.environ["RUNS"]).open("a") as runs:
        runs.write(f"{order.order_id}\n")


async def block(order: Order) -> None:
    """Write down each run; the order that is to block does what one call without `await` does."""
    write_down(order)
    if order.reference == BLOCKING:
        time.sleep(BLOCK_SECONDS)  # noqa: ASYNC251  # the mistake itself
    await asyncio.sleep(2)  # so that its neighbours are in hand meanwhile


def block_in_a_thread(order: Order) -> None:
    """Do the same as a plain function."""
    write_down(order)
    time.sleep(BLOCK_SECONDS if order.reference == BLOCKING else 0.1)


async def refuse(order: Order) -> None:
    """Do as a handler with a bug that concerns everybody."""
    raise Refuse("the handler is broken")


async def by_reference(order: Order) -> None:
    """End in the way that the order's reference says."""
    if order.reference == "refused":
        raise Refuse("no stock")
    if order.reference == "again" and order.attempts == 1:
        raise Retry("busy", after=0)
    await asyncio.sleep(3 if order.reference == "slow" else 0)
