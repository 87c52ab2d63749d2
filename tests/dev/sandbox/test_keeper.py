"""Nothing outlives its owner, also one that is killed at once."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.sandbox import keeper
from dev.sandbox.keeper import is_alive
from dev.sandbox.process import ROOT, Process, Spec, wait_until

# An owner that starts a family (child, grandchild, one in a session of its own) and then only waits.
OWNER = """
import os, sys, time
from pathlib import Path
from dev.sandbox.process import Process, Spec
shell = "sleep 600 & setsid sleep 600 & exec sleep 600"
removed = sys.argv[1] + "/top/data"
os.makedirs(removed)
process = Process(
    Spec(name="family", command=("sh", "-c", shell), environ=dict(os.environ), remove=(removed,)),
    Path(sys.argv[1]), restart=True,
)
process.start()
while len(process.family()) < 3:
    time.sleep(0.01)
if sys.argv[2] == "paused":
    process.pause()
print(*process.family(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    process = Process(Spec(name="sleeper", command=("sleep", "600"), environ=dict(os.environ)), tmp_path, restart=True)
    process.start()
    yield process
    process.stop()


@pytest.mark.parametrize("state", ["running", "paused"])
def test_owner_is_killed(tmp_path: Path, state: str) -> None:
    """
    kill -9 of the owner ends its children, their children, those in other sessions, and those that are stopped.
    """
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), state], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        family = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(family) == 3
        assert all(is_alive(pid) for pid in family)
        owner.kill()

    wait_until(lambda: not any(is_alive(pid) for pid in family), 5, lambda: f"{family} live on")
    wait_until(lambda: not (tmp_path / "top").exists(), 5, lambda: "its folder is still there")


def test_keeper_is_killed(sleeper: Process) -> None:
    """
    A child whose keeper is killed goes with it.
    """
    pid = sleeper.pid
    assert pid is not None
    os.kill(parent_of(pid), signal.SIGKILL)

    wait_until(lambda: not is_alive(pid), 5, lambda: f"{pid} lives on")


def test_dies_and_comes_back(sleeper: Process) -> None:
    """
    A process that dies is started again, and its pid file says the new pid.
    """
    first = sleeper.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)

    wait_until(lambda: sleeper.pid not in (None, first), 5, lambda: "it was not started again")
    wait_until(lambda: sleeper.pid_file.read_text() == f"{sleeper.pid}\n", 5, lambda: "the pid file is old")


def test_stopped_stays_stopped(sleeper: Process) -> None:
    """
    A process that was stopped on purpose stays so, and its pid file is gone.
    """
    sleeper.stop()

    assert sleeper.pid is None
    assert not sleeper.pid_file.exists()
    assert sleeper.starts == 1


def test_deaf_process_is_killed(tmp_path: Path) -> None:
    """
    Whoever ignores the polite signal is killed when its time is up.
    """
    deaf = Process(
        Spec(name="deaf", command=("sh", "-c", "trap '' TERM; echo deaf; sleep 600"), environ=dict(os.environ)),
        tmp_path,
        restart=False,
    )
    deaf.start()
    wait_until(lambda: deaf.last_line() == "deaf", 5, lambda: "it did not start")
    deaf.stop(seconds=0.2)

    assert deaf.pid is None
    assert deaf.last_exit == 128 + signal.SIGKILL


def test_refuses_its_start(tmp_path: Path) -> None:
    """
    A process that keeps ending at once is known by its last line.
    """
    refusing = Process(
        Spec(name="refusing", command=("sh", "-c", "echo no schema; exit 1"), environ=dict(os.environ)),
        tmp_path,
        restart=True,
    )
    refusing.start()
    wait_until(refusing.refused, 5, lambda: "it was not noticed")
    refusing.stop()

    assert refusing.last_line() == "no schema"


def test_missing_program(tmp_path: Path) -> None:
    """
    A command that is not there says so.
    """
    missing = Process(Spec(name="missing", command=("/no/such/program",), environ={}), tmp_path, restart=False)
    missing.start()
    wait_until(lambda: missing.last_exit is not None, 5, lambda: "it still runs")

    assert missing.last_line() == "/no/such/program: No such file or directory"


def test_descendants_of_nobody() -> None:
    """
    A pid without children has no descendants.
    """
    assert keeper.descendants(2**22 + 1) == []


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
