"""A seed makes a plan: a subset of the kinds, when each comes, where, how long. The same seed, the same plan."""

import fnmatch
import random

from dev.chaos import (
    broker_faults,
    client_faults,
    code_faults,
    database_faults,
    network_faults,
    operator_faults,
    process_faults,
)
from dev.chaos.act import KINDS, Planned

# Importing them has put their faults on the list.
FAMILIES = (process_faults, code_faults, database_faults, broker_faults, network_faults, client_faults, operator_faults)

MEAN_PAUSE_SECONDS = 2.2  # between the beginnings of two faults
SHARE = 0.7  # of the kinds in one plan: swarm testing, so that a rare pair is not always drowned by the others
QUIET_SECONDS = 3.0  # at the beginning, so that there is something to break


def kinds_of(patterns: str) -> list[str]:
    """Return the kinds that comma-separated patterns name: `P*,N4`."""
    wanted = [each.strip() for each in patterns.split(",")]
    found = [id_ for id_ in KINDS if any(fnmatch.fnmatchcase(id_, pattern) for pattern in wanted)]
    if not found:
        raise ValueError(f"no fault has a name like {patterns}: there are {', '.join(KINDS)}")
    return found


def plan(seed: int, seconds: float, kinds: list[str]) -> list[Planned]:
    """Return the faults of this seed, in order of time."""
    rng = random.Random(f"{seed} {seconds} {','.join(kinds)}")
    chosen = sorted(rng.sample(kinds, max(1, round(len(kinds) * (SHARE if len(kinds) > 8 else 1)))))
    weights = [KINDS[id_].weight * rng.uniform(0.5, 1.5) for id_ in chosen]
    planned: list[Planned] = []
    at = QUIET_SECONDS
    # Each kind once, in any order, before chance decides: a short run has most of them too.
    first = rng.sample(chosen, len(chosen))
    while at < seconds:
        id_ = first.pop() if first else rng.choices(chosen, weights)[0]
        kind = KINDS[id_]
        lasts = rng.uniform(*kind.seconds)
        planned.append(Planned(round(at, 2), id_, rng.choice(kind.places), round(lasts, 2), rng.randrange(2**32)))
        at += rng.expovariate(1 / MEAN_PAUSE_SECONDS)
    return planned
