"""What a warm parent starts is what `python -m` starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dev.sandbox import keeper
from dev.sandbox.ports import free_port
from dev.sandbox.process import ROOT, Process, Spec, answers, by_popen, wait_until
from tests import warm

NOWHERE = {"DATABASE_URL": "postgresql://127.0.0.1:9/orders", "AMQP_URL": "amqp://127.0.0.1:9"}
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "help": ([warm.ORDERS, "--help"], {}),
    "module": ([sys.executable, "-m", "orders.cli", "dead", "--help"], {}),
    "wrong": ([sys.executable, "-m", "orders.cli", "no-such-command"], {}),
    "relay": ([sys.executable, "-m", "relay"], NOWHERE | {"RELAY_BATCH_ROWS": "many"}),
    "api": ([sys.executable, "-m", "orders.app"], NOWHERE | {"ORDERS_WRITERS": "many"}),
    "worker": ([sys.executable, "-m", "orders.worker"], NOWHERE | {"WORKER_CONCURRENCY": "many"}),
    "alembic": ([sys.executable, "-m", "alembic", "upgrade", "head"], NOWHERE),
}


@pytest.mark.parametrize(("command", "settings"), COMMANDS.values(), ids=COMMANDS)
def test_exit_code_and_words(command: list[str], settings: dict[str, str], tmp_path: Path) -> None:
    """
    The exit code is the same, and so is every word, whatever the folder.
    """
    folder = ROOT if "alembic" in command else tmp_path
    environ = {name: value for name, value in os.environ.items() if name not in NOWHERE} | settings
    real = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)

    done = warm.run(command, cwd=folder, env=environ)

    assert (done.returncode, done.stdout, done.stderr) == (real.returncode, real.stdout, real.stderr)


def test_signals_and_place(tmp_path: Path) -> None:
    """
    A process under a keeper has the session, environment, folder, descriptors and signals of one that was started.
    """
    seen = []
    for name, launch in (("real", by_popen), ("warm", warm.launch)):
        port = free_port()
        environ = {**os.environ, **NOWHERE, "RELAY_PORT": str(port), "RELAY_START_SECONDS": "60"}
        spec = Spec(name=name, command=(sys.executable, "-m", "relay"), environ=environ)
        process = Process(spec, tmp_path, restart=False, launch=launch)
        process.start()
        wait_until(lambda port=port: answers(f"http://127.0.0.1:{port}/health/live"), 30, process.last_line)  # type: ignore[misc]
        pid = process.pid
        assert pid is not None
        assert process.family() == [pid]
        signals = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Sig")]
        standard = [os.readlink(f"/proc/{pid}/fd/{number}").rpartition("/")[2] for number in (0, 1, 2)]
        seen.append(
            (
                os.getsid(pid) == os.getpgid(pid) != os.getsid(0),
                Path(f"/proc/{pid}/cwd").readlink(),
                [each for each in signals if not each.startswith("SigQ")],
                [each.replace(name, "name") for each in standard],
                open_files(pid),
            )
        )
        process.pause()
        assert keeper.is_stopped(pid)
        process.resume()
        began = time.monotonic()
        process.stop()
        assert (process.last_exit, time.monotonic() - began < 10) == (0, True)

    assert seen[0] == seen[1]


def open_files(pid: int) -> set[str]:
    """Return what it has open, but for sockets, of which each request makes one."""
    names = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    return {name.rpartition("/")[0] or name for name in names if not name.startswith("socket:")}


def test_killed(tmp_path: Path) -> None:
    """
    A process that a signal ends has the exit code that `subprocess` gives it.
    """
    command = [sys.executable, "-m", "relay"]
    environ = {**os.environ, **NOWHERE, "RELAY_PORT": str(free_port()), "RELAY_START_SECONDS": "60"}
    running = warm.Captured(command, env=environ)
    assert running.returncode is None

    running.kill()

    assert running.returncode == -signal.SIGKILL
