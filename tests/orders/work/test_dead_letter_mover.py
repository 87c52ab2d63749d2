"""Whoever empties the dead-letter queue is not to fall silent."""

import asyncio
import signal
from collections.abc import AsyncIterator

import aiormq
import pytest

from orders.broker.topology import DEAD_QUEUE
from orders.work.dead_letter_mover import DeadLetters
from orders.work.letters import Letter
from tests.eventually import eventually


@pytest.fixture
async def stopped() -> AsyncIterator[asyncio.Event]:
    """Set once the process is told to stop."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    yield told
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def bury(letter: Letter) -> None:
    raise KeyError(letter.size)


async def test_a_bug_in_burying_ends_the_process(topology: str, stopped: asyncio.Event) -> None:
    """
    A letter that nobody can explain is not kept in silence: the process stops as at SIGTERM.
    """
    async with DeadLetters(topology, bury):
        async with await aiormq.connect(topology) as connection:
            channel = await connection.channel()
            await channel.basic_publish(b"a letter", routing_key=DEAD_QUEUE)
        await eventually(stopped.is_set)


async def test_a_bug_in_consuming_ends_the_process(
    topology: str, stopped: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Without its consumer nobody would empty the queue any more.
    """
    dead_letters = DeadLetters(topology, bury)

    async def run() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(dead_letters.consumer, "run", run)
    await dead_letters.__aenter__()
    await eventually(stopped.is_set)
    with pytest.raises(KeyError):
        await dead_letters.__aexit__()
