"""Fixtures: a bare database, and Alembic on it."""

import os
import sys
from collections.abc import Callable, Iterator

import pytest

from dev.sandbox.servers import Servers
from tests import places, warm

Alembic = Callable[..., warm.Captured]


@pytest.fixture
def bare_database(servers: Servers) -> Iterator[str]:
    """A database that nobody has migrated."""
    with places.database(servers) as url:
        yield url


@pytest.fixture
def second_database(servers: Servers) -> Iterator[str]:
    """Another one, to compare."""
    with places.database(servers) as url:
        yield url


def alembic(url: str | None, *arguments: str, **settings: str) -> warm.Captured:
    """Start Alembic as people do: from the project's root, told by DATABASE_URL."""
    environ = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    command = [sys.executable, "-m", "alembic", *arguments]
    return warm.Captured(command, env=environ | settings | ({} if url is None else {"DATABASE_URL": url}))


@pytest.fixture
def run_alembic() -> Callable[..., str]:
    """Run it to its end; return what it printed."""

    def run(url: str, *arguments: str) -> str:
        process = alembic(url, *arguments)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out

    return run


@pytest.fixture
def start_alembic() -> Iterator[Alembic]:
    """Start several side by side."""
    started: list[warm.Captured] = []

    def start(url: str | None, *arguments: str, **settings: str) -> warm.Captured:
        started.append(alembic(url, *arguments, **settings))
        return started[-1]

    yield start
    for process in started:
        process.kill()
