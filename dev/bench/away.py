"""The database goes away under load, and comes back: `make bench ONLY=away`.

How long a placement waits at most for its 503, and how long after the return of the database the first 201 comes; with
PostgreSQL stopped, and with PostgreSQL stalled (SIGSTOP).

The clients are bare connections. Under 32 of a full HTTP client in one process a request waits for up to 0.8 s before
it is sent, and the time that a client needs for itself would be told as the service's.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from dev.bench.measurement import Bench
from dev.bench.record import Figures
from dev.sandbox.servers import Server
from dev.sandbox.system import Counts, System
from tests import places
from tests.journey.raw_http import Connection
from tests.journey.shoppers import ORDER

CLIENTS = 32
AWAY_SECONDS = 6
PROMISED_SECONDS = 2


class Placement(msgspec.Struct, frozen=True):
    """A request for an order, on the clock of this process."""

    began: float
    ended: float
    status: int


def measure(bench: Bench) -> None:
    """Measure, and compare with the promises."""
    bench.settings(clients=CLIENTS, apis=3, away_seconds=AWAY_SECONDS)
    postgres = bench.servers.postgres
    with tempfile.TemporaryDirectory(prefix="away-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with (
            places.database(bench.servers) as url,
            places.vhost(bench.servers) as vhost,
            System(
                url, vhost, folder, Counts(apis=3, relays=0, workers=0), users_url=bench.servers.management_url
            ) as system,
        ):
            sides = {
                kind: lambda kind=kind: asyncio.run(once(system, postgres, kind)) for kind in ("stopped", "stalled")
            }
            bench.compare("database away", sides, 4 if bench.full else 2)
    for kind in sides:
        no = max(bench.values("database away", kind, "slowest_503_seconds"))
        yes = max(bench.values("database away", kind, "first_201_seconds"))
        bench.note(
            f"{kind}: 503 within {no:.2f} s, 201 {yes:.2f} s after its return (promise: {PROMISED_SECONDS} s each)"
        )


async def once(system: System, postgres: Server, kind: str) -> Figures:
    """Take the database away for some seconds while clients place orders."""
    body = msgspec.json.encode(ORDER)
    made: list[Placement] = []
    stop = asyncio.Event()

    async def shop() -> None:
        connection = Connection(system.base_url)
        while not stop.is_set():
            began = time.monotonic()
            status, _, _ = await connection.ask("POST", "/orders", body, content_type="application/json")
            made.append(Placement(began, time.monotonic(), status))
            await asyncio.sleep(0.02)
        connection.hang_up()

    async with asyncio.TaskGroup() as tasks:
        for number in range(CLIENTS):
            tasks.create_task(shop(), name=f"client-{number}")
        await asyncio.sleep(1)
        going = time.monotonic()
        await asyncio.to_thread(postgres.stop if kind == "stopped" else postgres.pause)
        gone = time.monotonic()
        await asyncio.sleep(AWAY_SECONDS)
        returning = time.monotonic()
        await asyncio.to_thread(postgres.start if kind == "stopped" else postgres.resume)
        back = time.monotonic()
        while not any(each.status == 201 and each.ended > returning for each in made):  # noqa: ASYNC110  # no event for it
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.5)
        stop.set()
    refused = [each.ended - each.began for each in made if each.status == 503]
    others = [each for each in made if each.status not in (201, 503)]
    return {
        "slowest_503_seconds": max(refused),
        "median_503_seconds": statistics.median(refused),
        "first_201_seconds": max(0.0, min(e.ended for e in made if e.status == 201 and e.ended > returning) - back),
        "last_503_seconds": max(0.0, max((e.ended for e in made if e.status == 503), default=back) - back),
        "other_answers": len(others),
        "going_seconds": gone - going,
        "answers": len(made),
    }
