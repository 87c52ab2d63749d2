"""Packages are installed without a service being started, and the machine is left as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev.sandbox import packages
from dev.sandbox.packages import MissingProgramError, services_stay_down
from dev.sandbox.process import ROOT

YES = "#!/bin/sh\nexit 0\n"
NO = "#!/bin/sh\nexit 101\n"

KILLED_WHILE_INSTALLING = """
import os, sys
from pathlib import Path
from dev.sandbox.packages import services_stay_down
with services_stay_down(Path(sys.argv[1]), Path(sys.argv[2])):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return tmp_path / "policy-rc.d"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def answer(policy: Path) -> int:
    return subprocess.run([policy, "postgresql", "start"]).returncode


def write(policy: Path, text: str) -> None:
    policy.write_text(text)
    policy.chmod(0o755)


def test_no_policy(policy: Path, lock: Path) -> None:
    """
    Where there was none, there is one that says no, and none afterwards.
    """
    with services_stay_down(policy, lock):
        assert answer(policy) == packages.DENIED

    assert not policy.exists()


def test_policy_that_says_no(policy: Path, lock: Path) -> None:
    """
    One that says no already is not touched.
    """
    write(policy, NO)
    with services_stay_down(policy, lock):
        assert policy.read_text() == NO

    assert policy.read_text() == NO


def test_policy_that_says_yes(policy: Path, lock: Path) -> None:
    """
    One that says yes is put aside, and is back afterwards, also when the installing fails.
    """
    write(policy, YES)
    with pytest.raises(MissingProgramError), services_stay_down(policy, lock):
        raise MissingProgramError

    assert policy.read_text() == YES


def test_killed_while_installing(policy: Path, lock: Path) -> None:
    """
    What a killed run leaves behind hinders no service, and the next run puts the old policy back.
    """
    write(policy, YES)
    subprocess.run([sys.executable, "-c", KILLED_WHILE_INSTALLING, policy, lock], cwd=ROOT)
    assert policy.read_text() != YES
    assert answer(policy) == 0

    with services_stay_down(policy, lock):
        assert answer(policy) == packages.DENIED
    assert policy.read_text() == YES


def test_may_not_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without the right to install, the error says what to type.
    """
    monkeypatch.setattr(packages, "find", lambda program: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(MissingProgramError, match="sudo apt-get install postgresql nginx"):
        packages.ensure(["postgres", "nginx"])


def test_all_there() -> None:
    """
    What is installed is found, and nothing is done.
    """
    packages.ensure(["sh", "true"])

    assert packages.find("sh") is not None
