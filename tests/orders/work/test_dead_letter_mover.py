"""The mover of the dead-letter queue never stops silently."""

import asyncio
import signal
from collections.abc import AsyncIterator

import aiormq
import pytest

from orders.broker.topology import DEAD_QUEUE
from orders.database.dead_letters_table import DeadLetter
from orders.work.dead_letter_mover import DeadLetterMover
from tests.eventually import eventually
from tests.orders.samples import placement


@pytest.fixture
async def stopped() -> AsyncIterator[asyncio.Event]:
    """Set once the process is told to stop."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    yield told
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def fail_to_store(letter: DeadLetter) -> None:
    raise KeyError(letter.size)


async def test_a_bug_in_storing_ends_the_process(topology: str, stopped: asyncio.Event) -> None:
    """
    A dead letter that cannot be stored for an unknown reason stops the process as SIGTERM does.
    """
    async with DeadLetterMover(topology, fail_to_store, str):
        async with await aiormq.connect(topology) as connection:
            channel = await connection.channel()
            await channel.basic_publish(b"a letter", routing_key=DEAD_QUEUE)
        await eventually(stopped.is_set)


async def test_a_bug_in_consuming_ends_the_process(
    topology: str, stopped: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A mover without its consumer stops the process.
    """
    mover = DeadLetterMover(topology, fail_to_store, str)

    async def run() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(mover.consumer, "run", run)
    await mover.__aenter__()
    await eventually(stopped.is_set)
    with pytest.raises(KeyError):
        await mover.__aexit__()


async def test_a_stored_dead_letter_has_its_line(topology: str, caplog: pytest.LogCaptureFixture) -> None:
    """
    The log names the order of a dead letter, or why its message has none.
    """
    placed = placement()

    async def store(letter: DeadLetter) -> None:
        pass

    async with DeadLetterMover(topology, store, str) as mover:
        async with await aiormq.connect(topology) as connection:
            channel = await connection.channel()
            for body in (b"a letter", placed.event.body):
                await channel.basic_publish(body, routing_key=DEAD_QUEUE)
        await eventually(lambda: mover.stored == 2)

    assert f"a dead letter is stored: the message of order {placed.order.order_id}" in caplog.messages
    assert any(line.startswith("a dead letter is stored: malformed: ") for line in caplog.messages)
