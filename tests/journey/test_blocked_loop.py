"""A handler that blocks: it holds up its neighbours, but none of them is worked twice."""

from collections import Counter
from pathlib import Path

import pytest
from psycopg import AsyncConnection

from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey.placing import place, statuses
from tests.journey.work_handlers import BLOCKING

ORDERS = 40


@pytest.mark.parametrize("handler", ["block", "block_in_a_thread"])
async def test_no_neighbour_is_worked_twice(start_system: StartSystem, tmp_path: Path, handler: str) -> None:
    """
    One handler blocks for 12 s, with two workers: each order's handler runs once, and the log names the order that
    blocks and the call. In a thread it holds nobody up, and there is nothing to warn of.
    """
    runs = tmp_path / "runs"
    runs.touch()
    settings = {"ORDERS_HANDLER": f"tests.journey.work_handlers:{handler}", "RUNS": str(runs)}
    system = start_system(apis=0, workers=2, with_nginx=False, settings=settings)
    async with await AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        neighbours = [None] * (ORDERS // 2)
        blocking = (await place(conn, [*neighbours, BLOCKING, *neighbours]))[ORDERS // 2]

        async def all_are_done() -> bool:
            return await statuses(conn) == {"done": ORDERS + 1}

        await eventually(all_are_done, 60)

    times = Counter(runs.read_text().split())
    assert set(times.values()) == {1}
    assert len(times) == ORDERS + 1
    log = "".join((system.folder / f"worker-{number}.log").read_text() for number in (1, 2))
    warned = f"order {blocking} blocks the event loop" in log and "time.sleep(BLOCK_SECONDS)" in log
    assert warned == (handler == "block")
