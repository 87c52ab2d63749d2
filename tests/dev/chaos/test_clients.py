"""The rig's own clients: they may not be what stops the system that they test."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dev.chaos.clients import AT_ONCE, LONGEST_RETRY_SECONDS, Clients, pauses
from dev.chaos.ledger import Ledger
from tests.eventually import eventually


@pytest.fixture
async def silence() -> AsyncIterator[str]:
    """The URL of a server that takes every request and answers none."""
    let_go = asyncio.Event()

    async def listen(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_go.wait()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    yield f"http://{host}:{port}"
    let_go.set()
    server.close()


def test_seed_1_who_gets_no_answer_asks_less_and_less_often() -> None:
    """
    After a burst and an outage hundreds of clients asked again at once, and kept the wires from carrying any answer.
    """
    waits = list(itertools.islice(pauses(), 20))

    assert waits[0] < waits[4]
    assert min(waits[10:]) >= LONGEST_RETRY_SECONDS / 2


async def test_seed_1_a_burst_waits_for_its_turn(silence: str, tmp_path: Path) -> None:
    """
    However many orders are sent at once, so many are on their way and no more.
    """
    ledger = Ledger(tmp_path / "clients.jsonl")
    clients = Clients(silence, ledger, rate=1.0)
    await clients.start()
    clients.send(3 * AT_ONCE)

    await eventually(lambda: clients.in_flight == AT_ONCE)
    assert len((tmp_path / "clients.jsonl").read_bytes().splitlines()) == AT_ONCE

    await clients.stop(patience=0)
    await ledger.close()
