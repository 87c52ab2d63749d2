"""P4 under everything at once: `python -m tests.relay.seeds` runs more of these, and `--seed N` one of them again."""

from pathlib import Path

import pytest

from tests.relay.schedule import Run

# One after another: five at once would starve each other.
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("properties")]

EVENTS = 10_000


@pytest.mark.parametrize("seed", range(1, 6))
async def test_first_appearances_are_in_commit_order(
    seed: int, database_url: str, amqp_url: str, tmp_path: Path
) -> None:
    """
    Relays killed, stopped and cut off, rows nacked and returned, commits late and out of order: each key's events first
    appear in commit order, and none is missing.
    """
    result = await Run(seed, database_url, amqp_url, tmp_path, EVENTS).run()

    assert result.wrong == []
    assert not result.is_vacuous, result
    assert result.events >= EVENTS
