"""What processes cost, as Linux counts it."""

import contextlib
import os
from pathlib import Path

from dev.sandbox.process import Process
from dev.sandbox.servers import Servers

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, and of those of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS


def wakeups(pid: int) -> float:
    """Return how many times the threads of a process have gone to sleep, waiting for something, and were woken."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            lines = (task / "status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
    return float(total)


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for each in found:
        try:
            tasks = list(Path(f"/proc/{each}/task").iterdir())
            for task in tasks:
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def family_cpu_seconds(pids: list[int]) -> float:
    """Return the CPU time of these processes and of all that descend from them."""
    return sum(cpu_seconds(each) for pid in pids for each in family(pid))


def memory_mib(pid: int) -> float:
    """Return the memory that a process has for itself (Pss: what it shares is divided)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def peak_memory_mib(pid: int) -> float:
    """Return the most memory that a process has had at any moment (VmHWM)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def its_family(its: Servers, name: str) -> list[int]:
    """Return the processes of a server of ours; of another's we know none."""
    process: Process | None = getattr(getattr(its, name), "process", None)
    return [] if process is None or process.pid is None else [process.pid]
