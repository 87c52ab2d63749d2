"""A terminal at which the tests run `orders`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dev.sandbox.system import System
from tests import warm
from tests.conftest import StartSystem


class Terminal:
    """Someone at a terminal, in a folder of their own."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder

    def run(self, *arguments: str, stdin: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        own = {"BASE_URL": self.system.base_url, "DATABASE_URL": self.system.database_url}
        path = {"PYTHONPATH": ":".join(path for path in sys.path if path), "COLUMNS": "200"}
        command = [sys.executable, "-m", "orders.cli", *arguments]
        return warm.run(command, cwd=self.folder, env={**path, **own, **environ}, given=stdin or "", timeout=30)

    def json(self, *arguments: str, stdin: str | None = None, **environ: str) -> list[dict[str, object]]:
        done = self.run(*arguments, "--json", stdin=stdin, **environ)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def terminal(start_system: StartSystem, tmp_path: Path) -> Terminal:
    settings = {"WORK_MIN_SECONDS": "0.01", "WORK_MAX_SECONDS": "0.1"}
    return Terminal(start_system(apis=1, settings=settings, with_nginx=False), tmp_path)
