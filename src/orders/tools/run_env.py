"""Read `.run/env`, in which `make up` writes the addresses of the system that it started in this folder."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from orders.runtime.settings import Settings

RUN_ENV = Path(".run/env")


def read_run_env(run_env: Path = RUN_ENV) -> dict[str, str]:
    """Return the `NAME=value` lines of the file as a dictionary; an empty one if this user has no such file."""
    try:
        if run_env.stat().st_uid != os.geteuid():
            return {}
        lines = run_env.read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def environment_for(
    settings: type[Settings], environ: Mapping[str, str] = os.environ, run_env: Path = RUN_ENV
) -> Mapping[str, str]:
    """Return the environment if it sets any of these settings, else `.run/env`; never a mixture of two systems."""
    names = [field.name.upper() for field in msgspec.structs.fields(settings)]
    given = any(environ.get(name) or environ.get(f"{name}_FILE") for name in names)
    return environ if given else read_run_env(run_env)
