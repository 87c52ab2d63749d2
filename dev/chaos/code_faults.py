"""C and T: crashes at points in the code, a blocked event loop, and wrong clocks: what inside/sitecustomize.py does."""

import asyncio

from dev.chaos.act import Act, kind
from dev.chaos.process_faults import ready_again, until
from dev.chaos.stage import NAMES, TRANSACTIONAL
from dev.sandbox.process import write_atomically

APIS, RELAYS, WORKERS = NAMES[:3], NAMES[3:6], NAMES[6:]
FIRES_SECONDS = 40.0  # somebody else may hold the servers up meanwhile
RESTARTS = frozenset({"kill", "raise"})

POINTS = {
    "C1": ("an api dies or hangs before its statement", APIS),
    "C4": ("an api dies or hangs between commit and answer", APIS),
    "C7": ("a relay dies or hangs with rows claimed", RELAYS),
    "C8": ("a relay dies or hangs before its first publish", RELAYS),
    "C10": ("a relay dies or hangs with confirms, nothing marked", RELAYS),
    "C11": ("a relay dies or hangs with rows marked, not committed", RELAYS),
    "C12": ("a relay dies or hangs before its low-water mark is saved", RELAYS),
    "C15": ("a worker dies or hangs with deliveries, nothing claimed", WORKERS),
    "C16": ("a worker dies or hangs with claims, no handler started", WORKERS),
    "C17": ("a worker dies or hangs between effect and finish", WORKERS),
    "C18": ("a worker dies or hangs between finish and ack", WORKERS),
}


async def reach_a_point(act: Act) -> None:
    """Have the process do something at this point; it has fired when the process has taken the order."""
    action = act.rng.choice(("kill", "kill", "kill", "raise", "sleep"))
    await obey(act, act.record.planned.kind, action)


async def obey(act: Act, point: str, action: str) -> None:
    """Give the order, wait until it was obeyed, and until the process is back."""
    process = act.stage.process(act.place)
    starts = process.starts
    order = act.stage.arm(act.place, {"point": point, "action": action})
    try:
        await until(lambda: not order.exists(), FIRES_SECONDS, f"{act.place} did not come to {point}")
    finally:
        order.unlink(missing_ok=True)
    act.fired(f"{action} at {point}")
    # In a handler's own transaction an exception is the handler's failure: the order is worked again, by the same.
    is_handlers_own = act.stage.handler == TRANSACTIONAL and point in {"C17", "C18"} and action == "raise"
    if action in RESTARTS and not is_handlers_own:
        await until(lambda: process.starts != starts, 30, f"{act.place} did not end")
        act.healed()
        await ready_again(process)
    else:
        await asyncio.sleep({"sleep": 10.0, "block": 5.0}.get(action, 0.0))
        act.healed()


for _id, (_title, _places) in POINTS.items():
    kind(_id, _title, _places, weight=1.2)(reach_a_point)


@kind("D9", "a statement fails with 40P01, 40001 or 55P03", (*APIS, *WORKERS), weight=2)
async def fail_a_statement(act: Act) -> None:
    """Nobody's fault: it is run again."""
    points = ("C1",) if act.place in APIS else ("C15", "C17")
    await obey(act, act.rng.choice(points), act.rng.choice(("deadlock", "serialization", "lock")))


LOOPS = {"api": "C1", "relay": "C7", "worker": "C15"}


@kind("P8", "the event loop is blocked for 5 s", NAMES, weight=1)
async def block(act: Act) -> None:
    """A call that does not return, in the middle of the process's work."""
    await obey(act, LOOPS[act.place.partition("-")[0]], "block")


@kind("P13", "a handler blocks the loop of its worker", WORKERS, weight=1, seconds=(3.0, 12.0))
async def block_in_a_handler(act: Act) -> None:
    """One order's handler does what a call without `await` does; its neighbours wait, and come once all the same."""
    order = act.stage.folder / f"{act.place}.block"
    write_atomically(order, str(act.seconds))
    try:
        await until(lambda: not order.exists(), FIRES_SECONDS, f"no handler ran in {act.place}")
    finally:
        order.unlink(missing_ok=True)
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    act.healed()


@kind("T1", "the clock of a process is an hour off", NAMES, weight=1, seconds=(3.0, 10.0))
async def wrong_clock(act: Act) -> None:
    """Ahead or behind; what it sees of the time, not what the servers see."""
    await shift(act, act.rng.choice((-3600.0, 3600.0)))


@kind("T3", "the clock of an api steps back", APIS, weight=1, seconds=(2.0, 6.0))
async def step_back(act: Act) -> None:
    """By two seconds: ids must go on upwards."""
    await shift(act, -2.0)


async def shift(act: Act, seconds: float) -> None:
    """Move the clock for a while, and put it right again."""
    clock = act.stage.folder / "inside" / f"{act.place}.clock"
    write_atomically(clock, str(seconds))
    act.fired(f"{seconds:+.0f} s for {act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    clock.unlink()
    act.healed()
