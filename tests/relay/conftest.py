"""Relays that end with their test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.relay.service import RelayProcess

StartRelay = Callable[..., RelayProcess]


@pytest.fixture
def start_relay(database_url: str, topology: str, tmp_path: Path) -> Iterator[StartRelay]:
    """Start relays on this test's database and vhost; settings by their names without RELAY_."""
    started: list[RelayProcess] = []

    def start(**settings: object) -> RelayProcess:
        relay = RelayProcess(database_url, topology, tmp_path, **settings)
        started.append(relay)
        return relay.start()

    yield start
    for relay in started:
        relay.kill()
