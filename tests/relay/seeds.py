"""Run many seeds of the property test, and keep what each showed: a run that was broken off goes on where it was.

python -m tests.relay.seeds              50 seeds, those that passed before left out
python -m tests.relay.seeds --seed 17    one seed again
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

import msgspec

from dev.sandbox.choice import choose
from dev.sandbox.servers import Servers, servers
from dev.sandbox.system import upgrade
from tests import places
from tests.relay.schedule import Result, Run

KEPT = Path(".run/seeds")
EVENTS = 10_000


def run_seed(opened: Servers, seed: int, events: int) -> Result:
    """Run one seed on a database and a vhost of its own, and keep its result."""
    with (
        places.database(opened) as database_url,
        places.vhost(opened) as amqp_url,
        tempfile.TemporaryDirectory(prefix=f"seed-{seed}-") as folder,
    ):
        upgrade(database_url)
        result = asyncio.run(Run(seed, database_url, amqp_url, Path(folder), events).run())
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{seed}.json").write_bytes(msgspec.json.encode(result))
    return result


def passed_before(seed: int) -> bool:
    """Say whether this seed's kept result is a good one."""
    kept = KEPT / f"{seed}.json"
    return kept.exists() and is_good(msgspec.json.decode(kept.read_bytes(), type=Result))


def is_good(result: Result) -> bool:
    """Say whether a run kept the promise, and was one that could have broken it."""
    return not result.wrong and not result.is_vacuous


def main() -> None:
    """Run what was asked for; exit 1 if a seed showed something wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="this one alone, whatever it showed before")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--events", type=int, default=EVENTS)
    asked = parser.parse_args()
    seeds = [asked.seed] if asked.seed is not None else range(1, asked.count + 1)
    bad = []
    due = [seed for seed in seeds if asked.seed is not None or not passed_before(seed)]
    print(f"{len(due)} of {len(list(seeds))} seeds to run, results in {KEPT}")
    with servers(choose(os.environ)) as opened:
        for seed in due:
            result = run_seed(opened, seed, asked.events)
            print(msgspec.json.encode(result).decode(), flush=True)
            if not is_good(result):
                bad.append(seed)
    if bad:
        print(f"wrong, or without one of the faults: {bad}; once more: python -m tests.relay.seeds --seed {bad[0]}")
        sys.exit(1)


if __name__ == "__main__":
    main()
