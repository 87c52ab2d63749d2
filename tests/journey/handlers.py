"""Work that leaves a trace which no crash undoes: each step of an order is a line in a file, flushed to disk.

The worker is told by ORDERS_HANDLER=tests.journey.handlers:work; JOURNEY_FOLDER says where the files are.
"""

import asyncio
import os
from pathlib import Path

from orders.model.order import Order

FOLDER = Path(os.environ["JOURNEY_FOLDER"])
GATE_POLL_SECONDS = 0.02


async def work(order: Order) -> None:
    """Note the start, wait while the gate is closed, then have the effect, last of all."""
    await asyncio.to_thread(note, "started", order)
    while (FOLDER / "gate-is-closed").exists():  # noqa: ASYNC110  # another process opens it
        await asyncio.sleep(GATE_POLL_SECONDS)
    await asyncio.to_thread(note, "effects", order)


async def note_once(order: Order) -> None:
    """Have the effect at once."""
    note("effects", order)


async def start_and_nap(order: Order) -> None:
    """Note the start, and give others a moment to come between."""
    note("started", order)
    await asyncio.sleep(GATE_POLL_SECONDS)


def note(step: str, order: Order) -> None:
    """Add a line in one write, so that several workers do not tear each other's."""
    file = os.open(FOLDER / step, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, f"{order.order_id}\n".encode())
        os.fdatasync(file)
    finally:
        os.close(file)
