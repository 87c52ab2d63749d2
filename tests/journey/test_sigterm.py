"""Every process is ended politely under load, one after the other, and started again."""

import pytest

from dev.sandbox.process import Process, by_popen
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.recorder import Recorder
from tests.journey.trace import Trace

GRACE_SECONDS = 14.0  # 12 in the process, and what a busy machine adds


async def replace(process: Process) -> None:
    """End it politely; return once its successor is ready."""
    starts, last_exit = process.starts, process.last_exit
    assert last_exit is None
    process.terminate()
    await eventually(lambda: process.last_exit is not None, GRACE_SECONDS)
    assert process.last_exit == 0
    await eventually(lambda: process.starts == starts + 1 and process.is_ready(), 30)


@pytest.mark.long
@pytest.mark.parametrize("front", [False, True], ids=["api, relay, worker", "nginx"])
async def test_every_process_is_ended_under_load(start_system: StartSystem, trace: Trace, front: bool) -> None:
    """
    SIGTERM drops no request and loses no order; while nginx itself is away, a client is refused, never left in doubt.
    """
    system = start_system(settings=trace.settings, launch=by_popen)
    recorder = Recorder(system.amqp_url)
    await recorder.subscribe()
    load = shoppers.Shoppers(system.base_url)

    async with load.shopping():
        for process in system.processes:
            if (process.name == "nginx") == front:
                await load.go_on(20)
                await replace(process)

    await trace.check(system, load.accepted, recorder)
    assert load.answers.keys() == {201}
    assert front or load.errors == []
    assert len(set(load.accepted)) == load.keys
