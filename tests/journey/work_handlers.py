"""Handlers that fail in every way there is, as the reference of their order and chance decide."""

import asyncio
import os
import random

from orders.handlers import Refuse, Retry
from orders.model.order import Order
from tests.journey.placing import DEADLY, REFUSED

NAP_SECONDS = (0.005, 0.03)


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


async def refuse(order: Order) -> None:
    """Do as a handler with a bug that concerns everybody."""
    raise Refuse("the handler is broken")
