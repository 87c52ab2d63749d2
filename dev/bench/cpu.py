"""What each program spends: CPU time is nearly the same beside a busy neighbour, where orders a second are not."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

from dev.bench.processes import cpu_seconds, family

WAITED_FOR = "wrk"  # what a measurement runs and waits for is the load generator

Spent = dict[str, float]


class Clock:
    """Started at once; `spent` tells what has been spent since, by program."""

    def __init__(self) -> None:
        self._before = _now()
        self._children = _children()

    def spent(self) -> Spent:
        """Return the CPU seconds since the start of every program below this process, and of those it waited for."""
        total = {WAITED_FOR: _children() - self._children}
        for pid, (name, seconds) in _now().items():
            _, before = self._before.get(pid, (name, 0.0))
            total[name] = total.get(name, 0.0) + seconds - before
        return total


def by_program(count: Callable[[int], float]) -> Spent:
    """Return by program the sum of what `count` tells of each process below this one."""
    total: Spent = {}
    for pid in family(os.getpid())[1:]:
        name = name_of(pid)
        total[name] = total.get(name, 0.0) + count(pid)
    return total


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _now() -> dict[int, tuple[str, float]]:
    return {pid: (name_of(pid), cpu_seconds(pid)) for pid in family(os.getpid())[1:]}


def name_of(pid: int) -> str:
    """Return a program's name: of Python's its module, of the others the file's."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split()
    except (FileNotFoundError, ProcessLookupError):
        return "?"
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return Path(words[0]).name.rstrip(":") if words else "?"
