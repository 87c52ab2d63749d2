"""N: what happens to the wires, on each of the seven edges: to one connection's wire, or to all of the edge."""

import asyncio

from dev.chaos.act import Act, kind
from dev.chaos.process_faults import until
from dev.chaos.stage import EDGES
from dev.sandbox.wire import LinkConditions, Way, Wire


def some(act: Act) -> list[Wire]:
    """One wire of the edge, or each."""
    wires = act.stage.wires[act.place]
    return wires if act.rng.random() < 0.3 else [act.rng.choice(wires)]


def keep_edge(place: str) -> tuple[str, ...]:
    """One fault at a time on an edge: the next would mend what this one broke."""
    return (f"wires {place}",)


async def endure(act: Act, wires: list[Wire], conditions: LinkConditions, detail: str) -> None:
    """Put these wires under the conditions for the seconds of the fault."""
    for wire in wires:
        wire.apply(conditions)
    act.fired(f"{len(wires)} wires, {act.seconds:.1f} s: {detail}")
    await asyncio.sleep(act.seconds)
    for wire in wires:
        wire.mend()
    act.healed()


@kind("N1", "latency and jitter", EDGES, weight=2, seconds=(2.0, 8.0), keeps=keep_edge)
async def latency(act: Act) -> None:
    """20 to 300 ms for each piece, and as much again by chance."""
    delay = act.rng.uniform(0.02, 0.3)
    await endure(act, some(act), LinkConditions(delay=delay, jitter=delay), f"{delay * 1000:.0f} ms")


@kind("N2", "little bandwidth", EDGES, weight=1.5, seconds=(2.0, 6.0), keeps=keep_edge)
async def bandwidth(act: Act) -> None:
    """4 to 40 kB/s."""
    rate = act.rng.uniform(4_000, 40_000)
    await endure(act, some(act), LinkConditions(bytes_per_second=rate), f"{rate / 1000:.0f} kB/s")


@kind("N3", "down: connections reset, new ones refused", EDGES, weight=2, seconds=(0.5, 5.0), keeps=keep_edge)
async def down(act: Act) -> None:
    """Nothing gets through, and everybody knows."""
    wires = some(act)
    for wire in wires:
        wire.cut()
    act.fired(f"{len(wires)} wires, {act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    for wire in wires:
        wire.mend()
    act.healed()


@kind("N4", "blackhole: connections stay open, nothing passes", EDGES, weight=2, seconds=(1.0, 9.0), keeps=keep_edge)
async def blackhole(act: Act) -> None:
    """Nothing gets through, and nobody knows."""
    both: frozenset[Way] = frozenset({"there", "back"})
    await endure(act, some(act), LinkConditions(silent=both), "both ways")


@kind("N5", "reset", EDGES, weight=2.5, keeps=keep_edge)
async def reset(act: Act) -> None:
    """Every connection of the wire, once."""
    wires = some(act)
    ends = sum(wire.open_ends for wire in wires)
    for wire in wires:
        wire.reset()
    act.fired(f"{ends // 2} connections")
    act.healed()


@kind("N6", "slicer: pieces of 1 to 7 bytes", EDGES, seconds=(1.0, 4.0), keeps=keep_edge)
async def slices(act: Act) -> None:
    """Whoever takes a piece for a message finds out."""
    await endure(act, [act.rng.choice(act.stage.wires[act.place])], LinkConditions(pieces_of=7), "1 to 7 bytes")


@kind("N7", "slow close", EDGES, seconds=(2.0, 6.0), keeps=keep_edge)
async def slow_close(act: Act) -> None:
    """The end of a stream arrives seconds late."""
    await endure(act, some(act), LinkConditions(closing=5.0), "5 s")


@kind("N8", "cut after k bytes", EDGES, weight=4, seconds=(40.0, 40.0), keeps=keep_edge)
async def cut(act: Act) -> None:
    """In the middle of whatever it is."""
    wire = act.rng.choice(act.stage.wires[act.place])
    way: Way = act.rng.choice(("there", "back"))
    count = act.rng.randrange(1, 3000)
    before = wire.cuts
    wire.cut_after(way, count)
    await until(lambda: wire.cuts > before, act.seconds, f"{count} bytes did not pass over {act.place}")
    act.fired(f"{way} after {count} bytes")
    wire.mend()
    act.healed()


@kind("N9", "one-way blackhole", EDGES, weight=2, seconds=(1.0, 9.0), keeps=keep_edge)
async def one_way(act: Act) -> None:
    """What is said arrives, what is answered does not; or the other way round."""
    way: Way = act.rng.choice(("there", "back"))
    await endure(act, some(act), LinkConditions(silent=frozenset({way})), way)
