"""A worker that dies with orders in hand."""

from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.recorder import Recorder
from tests.journey.trace import Trace

ORDERS = 40


async def test_worker_is_killed_mid_work(start_system: StartSystem, trace: Trace) -> None:
    """
    Orders whose worker is killed before their effect are worked again by another one, at once.
    """
    system = start_system(settings=trace.settings)
    recorder = Recorder(system.amqp_url)
    await recorder.subscribe()
    trace.close_gate()

    accepted = await shoppers.place(system.base_url, ORDERS)
    await eventually(lambda: len(trace.count("started")) == ORDERS, 20)
    worker = system.process("worker-1")
    worker.kill()
    await eventually(lambda: trace.count("started").total() == 2 * ORDERS, 20)
    assert trace.count("effects").total() == 0
    trace.open_gate()

    await trace.check(system, accepted, recorder)
    assert worker.starts == 2
    assert set(trace.count("started").values()) == {2}


async def test_worker_is_killed_and_the_other_takes_over(start_system: StartSystem, trace: Trace) -> None:
    """
    With two workers, one killed and never started again, the other works the orders of both.
    """
    system = start_system(workers=2, settings=trace.settings)
    trace.close_gate()

    accepted = await shoppers.place(system.base_url, ORDERS)
    await eventually(lambda: len(trace.count("started")) == ORDERS, 20)
    worker = system.process("worker-1")
    worker.restart = False
    worker.kill()
    trace.open_gate()

    await trace.check(system, accepted)
    assert ORDERS < trace.count("started").total() < 2 * ORDERS, "both had orders in hand, and one died"
