"""Read `.run/env`, in which `make up` writes the addresses of the system that it started in this folder."""

from pathlib import Path

RUN_ENV = Path(".run/env")


def read_run_env(run_env: Path = RUN_ENV) -> dict[str, str]:
    """Return the `NAME=value` lines of the file as a dictionary; an empty one if there is no file."""
    try:
        lines = run_env.read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)
