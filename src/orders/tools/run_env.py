"""Where a system is that `make up` started in this folder: what it wrote into `.run/env`."""

from pathlib import Path

RUN_ENV = Path(".run/env")


def read_run_env(run_env: Path = RUN_ENV) -> dict[str, str]:
    """Return the `NAME=value` lines of the file, or nothing where there is none."""
    try:
        lines = run_env.read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)
