"""Compares the code on disk with the start of the processes that run it, in a system that `make up` started here."""

import importlib.util
import re
import time
from pathlib import Path

import httpx

START = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)  # of prometheus_client
SLACK_SECONDS = 2.0  # the kernel counts a process's start in coarse steps


async def started_at(client: httpx.AsyncClient, url: str) -> float | None:
    """Return the Unix time in seconds at which an api or a worker started, by its metrics; None if they do not tell."""
    found = START.search((await client.get(f"{url}/metrics")).text)
    return float(found[1]) if found else None


def complaint_of(package: str, started: float | None, handler: str = "") -> list[str]:
    """Return that a process runs older code than its package or its handler (`module:function`) has on disk, if so."""
    changed = max((file.stat().st_mtime for file in _files(package, handler)), default=0.0)
    if started is None or changed <= started + SLACK_SECONDS:
        return []
    at = time.strftime("%H:%M:%S", time.localtime(changed))
    return [f"it runs code from before the last change on disk ({at}): `make up` restarts it"]


def _files(package: str, handler: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    files = [file for root in (spec and spec.submodule_search_locations) or () for file in Path(root).rglob("*.py")]
    own = Path(handler.partition(":")[0].replace(".", "/") + ".py")  # `make up` looks for it in this folder, too
    return [*files, own] if own.is_file() else files
