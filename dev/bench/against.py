"""This tree against an earlier commit of it: `make bench ONLY=against AGAINST=REVISION`.

Both run on the same servers and the same schema, this tree's, and take turns. A change of structure has to cost
nothing: the ratios say whether it does.

placing     orders placed a second through nginx and three apis, and the CPU time of an order
highest     orders placed and worked to done, as fast as it goes, with a relay and a worker
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

import click

from dev.bench import end_to_end, placing
from dev.bench.measurement import Bench
from dev.sandbox import packages
from dev.sandbox.process import ROOT

SECONDS = 5
ROUNDS = 6
TARGET = "at least 0.97"


def checked_out(revision: str, folder: Path) -> dict[str, str]:
    """Unpack a revision into a folder; return the settings that make a process run its code."""
    done = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
    if done.returncode != 0:
        raise click.ClickException(f"AGAINST={revision}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    # Without the safe path, Python would put the current folder, this tree, before all others.
    settings = {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{folder / 'src'}:{folder}"}
    command = [sys.executable, "-c", "import orders, relay; print(orders.__file__, relay.__file__)"]
    found = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=True)
    assert all(Path(file).is_relative_to(folder) for file in found.stdout.split()), found.stdout
    return settings


def measure(bench: Bench) -> None:
    """Measure both, and compare."""
    packages.ensure(["nginx", "wrk"])
    revision = os.environ.get("AGAINST")
    if not revision:
        raise click.ClickException("say which commit to measure against: make bench ONLY=against AGAINST=REVISION")
    seconds = int(os.environ.get("SECONDS", SECONDS))
    rounds = int(os.environ.get("ROUNDS", ROUNDS))
    bench.settings(against=revision, seconds=seconds, rounds=rounds, connections=placing.CONNECTIONS, apis=placing.APIS)
    its = bench.servers
    with tempfile.TemporaryDirectory(prefix="bench-against-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        earlier = checked_out(revision, folder / "tree")
        with (
            placing.ours(its, folder / "now") as now,
            placing.ours(its, folder / "before", settings=earlier) as before,
        ):
            for contender in (now, before):
                placing.drive(contender, 2)  # warm
            sides = {"now": partial(placing.drive, now, seconds), "before": partial(placing.drive, before, seconds)}
            bench.compare("placing", sides, rounds)
        with (
            end_to_end.ours(its, folder / "now-working") as now_working,
            end_to_end.ours(its, folder / "before-working", settings=earlier) as before_working,
        ):
            for side in (now_working, before_working):
                end_to_end.warm(side)
            work = partial(end_to_end.all_of_it, seconds=seconds)
            bench.compare(
                "highest", {"now": partial(work, now_working), "before": partial(work, before_working)}, rounds
            )
    bench.ratio("placed/s: now / before", "placing", "per_second", "now", "before", TARGET)
    bench.ratio("CPU time of a placement: before / now", "placing", "cpu_us", "before", "now", TARGET)
    bench.ratio("done/s: now / before", "highest", "done_per_second", "now", "before", TARGET)
    bench.ratio("CPU time of an order to done: before / now", "highest", "cpu_us", "before", "now", TARGET)
