"""P: what happens to processes. The supervisor starts again what has died."""

import asyncio
import os
import resource
import signal
import time
from collections.abc import Callable

from dev.chaos.act import Act, kind
from dev.chaos.stage import NAMES
from dev.sandbox.process import Process

ROLES = ("api", "relay", "worker")
READY_SECONDS = 40.0


@kind("P1", "SIGKILL of a process", NAMES, weight=4)
async def kill(act: Act) -> None:
    """Kill one, and let the supervisor start it again."""
    process = act.stage.process(act.place)
    before = process.pid
    act.fired(f"pid {before}")
    await asyncio.to_thread(process.kill)
    act.healed()
    await ready_again(process)


@kind("P2", "SIGTERM under load", NAMES, weight=3)
async def terminate(act: Act) -> None:
    """Ask one to end; the supervisor starts the next."""
    process = act.stage.process(act.place)
    starts = process.starts
    began = time.monotonic()
    act.fired(f"pid {process.pid}")
    await asyncio.to_thread(process.terminate)
    await until(lambda: process.starts != starts, 30, f"{act.place} did not end after SIGTERM")
    act.healed()
    act.fired(f"it ended within {time.monotonic() - began:.1f} s")
    await ready_again(process)


@kind("P3", "SIGSTOP for longer than leases and heartbeats, then SIGCONT", NAMES, weight=3, seconds=(1.5, 16.0))
async def pause(act: Act) -> None:
    """Stop one; it comes back as a zombie."""
    process = act.stage.process(act.place)
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.to_thread(process.pause)
    try:
        await asyncio.sleep(act.seconds)
    finally:
        await asyncio.to_thread(process.resume)
    act.healed()


@kind("P4", "crash loop", NAMES, seconds=(3.0, 6.0))
async def crash_loop(act: Act) -> None:
    """Kill one as soon as it runs, again and again."""
    process = act.stage.process(act.place)
    end = time.monotonic() + act.seconds
    kills = 0
    while time.monotonic() < end:
        if process.pid is not None:
            await asyncio.to_thread(process.kill)
            kills += 1
            act.fired(f"{kills} times")
        await asyncio.sleep(act.rng.uniform(0.2, 1.2))
    act.healed()
    await ready_again(process)


@kind("P6", "CPU starvation: stopped nine tenths of the time", NAMES, seconds=(2.0, 6.0))
async def starve(act: Act) -> None:
    """Let it run 20 ms of each 200 ms."""
    process = act.stage.process(act.place)
    act.fired(f"{act.seconds:.1f} s")
    end = time.monotonic() + act.seconds
    try:
        while time.monotonic() < end:
            pid = process.pid
            if pid is not None:
                send(pid, signal.SIGSTOP)
                await asyncio.sleep(0.18)
                send(pid, signal.SIGCONT)
            await asyncio.sleep(0.02)
    finally:
        await asyncio.to_thread(process.resume)
    act.healed()


@kind("P7", "no file descriptors left", NAMES, seconds=(2.0, 5.0))
async def exhaust_descriptors(act: Act) -> None:
    """Allow it no more descriptors than it has."""
    process = act.stage.process(act.place)
    await until(lambda: process.pid is not None, READY_SECONDS, f"{act.place} is not running")
    pid = process.pid
    assert pid is not None
    has = len(os.listdir(f"/proc/{pid}/fd"))
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (has, hard))
    act.fired(f"{has} descriptors")
    await asyncio.sleep(act.seconds)
    if process.pid == pid:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    act.healed()


@kind("P9", "rolling replacement of a role", ROLES, weight=0.5, keeps=lambda role: of(role))
async def roll(act: Act) -> None:
    """End one after the other, each when the one before is ready again."""
    for name in of(act.place):
        process = act.stage.process(name)
        starts = process.starts
        await asyncio.to_thread(process.terminate)
        act.fired(name)
        await until(lambda process=process, starts=starts: process.starts != starts, 30, f"{name} did not end")  # type: ignore[misc]
        await ready_again(process)
    act.healed()


@kind("P10", "all of a role die and start at once", ROLES, weight=0.7, keeps=lambda role: of(role))
async def kill_all(act: Act) -> None:
    """Kill the three."""
    processes = [act.stage.process(name) for name in of(act.place)]
    act.fired()
    await asyncio.gather(*(asyncio.to_thread(process.kill) for process in processes))
    act.healed()
    await asyncio.gather(*(ready_again(process) for process in processes))


@kind("P11", "a role scaled to zero and back", ROLES, weight=0.5, seconds=(1.0, 5.0), keeps=lambda role: of(role))
async def scale_to_zero(act: Act) -> None:
    """End the three in an orderly way, and start them again after a while."""
    processes = [act.stage.process(name) for name in of(act.place)]
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.gather(*(asyncio.to_thread(process.stop) for process in processes))
    try:
        await asyncio.sleep(act.seconds)
    finally:
        await asyncio.gather(*(asyncio.to_thread(process.start) for process in processes))
    await asyncio.gather(*(ready_again(process) for process in processes))
    act.healed()


@kind("H6", "nginx reloaded or killed", ("nginx",), weight=1.5)
async def upset_nginx(act: Act) -> None:
    """Reload it, or kill it and let the supervisor start it again."""
    process = act.stage.process("nginx")
    if act.rng.random() < 0.5:
        await asyncio.to_thread(process.reload)
        act.fired("reloaded")
        act.healed()
        return
    act.fired("killed")
    await asyncio.to_thread(process.kill)
    act.healed()
    await ready_again(process)


@kind("H7", "an api killed while it holds requests", ("api-1", "api-2", "api-3"), weight=1.5)
async def kill_with_requests(act: Act) -> None:
    """Send some at once, and kill the api that has a share of them in hand."""
    act.clients.send(30)
    await until(lambda: act.clients.in_flight >= 5, 5, "no requests were in flight")
    act.fired(f"{act.clients.in_flight} requests in flight")
    process = act.stage.process(act.place)
    await asyncio.to_thread(process.kill)
    act.healed()
    await ready_again(process)


def of(role: str) -> tuple[str, ...]:
    """The names of a role's processes."""
    return tuple(name for name in NAMES if name.startswith(role))


async def ready_again(process: Process) -> None:
    """Return when it says that it is ready, or has had its time: other faults may hold it up."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if await asyncio.to_thread(process.is_ready):
            process.succeed()
            return
        await asyncio.sleep(0.1)


async def until(fact: Callable[[], bool], seconds: float, complaint: str) -> None:
    """Return when the fact holds; a fault that cannot do what it is for has not fired."""
    end = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > end:
            raise TimeoutError(complaint)
        await asyncio.sleep(0.02)


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
