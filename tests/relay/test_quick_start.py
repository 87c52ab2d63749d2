"""The quick start of docs/relay.md, as the page has it: from nothing to the first event in a queue."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dev.sandbox.ports import free_port
from dev.sandbox.servers import Servers
from tests import places
from tests.relay.service import ROOT, becomes, recording
from tests.relay.test_distribution import lend_packages, run

SECTION = re.compile(r"^## Quick start\n(.*?)^## ", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Where the servers are containers, the machine may be without psql.
PSQL = """#!{python}
import sys
import psycopg
with psycopg.connect(sys.argv[-1], autocommit=True) as conn:
    conn.execute(sys.stdin.read())
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The programs of a new virtual environment, whose pip finds what it needs on this machine."""
    environment = tmp_path / "environment"
    assert run(sys.executable, "-m", "venv", "--without-pip", environment).returncode == 0
    lend_packages(environment)
    folder = environment / "bin"
    write(folder / "pip", f'#!/bin/sh\nexec "{sys.executable}" -m pip --python "{folder}/python" "$@"\n')
    if shutil.which("psql") is None:
        write(folder / "psql", PSQL.format(python=folder / "python"))
    return folder


def write(program: Path, text: str) -> None:
    program.write_text(text)
    program.chmod(0o755)


@pytest.fixture
def empty_database(servers: Servers) -> Iterator[str]:
    with places.database(servers) as url:
        yield url


@contextmanager
def shell(commands: str, environ: dict[str, str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run commands in a shell that ends at the first one that fails; end what they leave in the background."""
    with output.open("wb") as written:
        running = subprocess.Popen(
            ["bash", "-ec", f"set -o pipefail\n{commands}"],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGTERM)
        running.wait(20)


@pytest.mark.long
async def test_five_commands(programs: Path, empty_database: str, amqp_url: str, tmp_path: Path) -> None:
    """
    The second block of the page has five commands; after them the first event is in the queue.
    """
    section = SECTION.search((ROOT / "docs" / "relay.md").read_text())
    assert section is not None
    settings, commands = BLOCK.findall(section[1])
    assert len(commands.splitlines()) == 5
    given = dict(re.findall(r"(RELAY_\w+)=(\S+)", settings))
    environ = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "DATABASE_URL": empty_database,
        "AMQP_URL": amqp_url,
        "RELAY_PORT": str(free_port()),
        **given,
        # As --no-index, --no-deps and --no-build-isolation: pip takes the value of the last one as "isolated: no".
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
    }
    output = tmp_path / "output"
    with shell(commands, environ, output) as running:
        assert await asyncio.to_thread(running.wait, 120) == 0, output.read_text()
        async with recording(amqp_url, "readings") as recorder:
            body = b'{"sensor": "greenhouse-1", "celsius": 21.5}'
            await becomes([body], lambda: asyncio.sleep(0, recorder.bodies()), 20)
