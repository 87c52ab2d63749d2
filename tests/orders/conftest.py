"""Fixtures: orders to place, and a wire to the database."""

from collections.abc import AsyncIterator

import pytest

from sandbox.wire import Wire, wire_to


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    """Between the code under test and its database."""
    async with wire_to(database_url) as wire:
        yield wire
