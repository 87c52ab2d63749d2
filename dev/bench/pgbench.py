"""pgbench with a script of ours: a client that costs next to nothing, so that what it tells is PostgreSQL's own."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dev.sandbox import packages


def run(
    database_url: str,
    script: Path,
    *,
    clients: int,
    seconds: int = 0,
    calls: int = 0,
    values: Mapping[str, str] | None = None,
    session: Mapping[str, str] | None = None,
) -> tuple[float, float]:
    """Run the script over and over, prepared; return how often a second, and the milliseconds that one run took.

    `values` are those of the script's variables, `session` the settings of its sessions; `calls` instead of `seconds`
    is how often each client runs it.
    """
    program = Path(packages.find("postgres") or "").resolve().parent / "pgbench"
    length = f"-t{calls}" if calls else f"-T{seconds}"
    options = " ".join(f"-c {name}={value}" for name, value in (session or {}).items())
    done = subprocess.run(
        [
            program, "-n", f"-c{clients}", f"-j{min(2, clients)}", length, "-Mprepared",
            *(f"-D{name}={value}" for name, value in (values or {}).items()), f"-f{script}", database_url,
        ],
        env=os.environ | {"PGOPTIONS": options}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    told = {line.split(" = ")[0]: line.split(" = ")[1].split()[0] for line in done.stdout.splitlines() if " = " in line}
    return float(told["tps"]), float(told["latency average"])
