"""The programs that run here: found where they are installed, installed where they are missing and we may.

Installing a server on Debian starts it as a system service, on the port that everybody's own server uses.
A `policy-rc.d` that says no prevents that for as long as we install.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLICY = Path("/usr/sbin/policy-rc.d")
LOCK = Path("/run/lock/orders-sandbox-packages")
DENIED = 101  # what policy-rc.d answers for "do not start it"
MARK = "# orders sandbox"
# Another apt may be at work: wait for it instead of failing.
APT_GET = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0", "-qq", "-y")

# Each program, and the Debian packages that bring it.
PACKAGES = {
    "postgres": "postgresql",
    "rabbitmq-server": "rabbitmq-server",
    "nginx": "nginx",
    "psql": "postgresql-client",
    "pgbouncer": "pgbouncer",
    "wrk": "wrk",
    "spin": "spin",
    "gcc": "gcc libc6-dev",
}


class MissingProgramError(Exception):
    """A program is not installed, and may not be installed from here."""


def find(program: str) -> str | None:
    """Where the program is, or None; Debian keeps some of them off the path."""
    if program == "postgres":
        # Newest first, and only a folder that can also make a database.
        for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True):
            if (folder / "postgres").exists() and (folder / "initdb").exists():
                return str(folder / "postgres")
    if program == "rabbitmq-server":
        # Debian's own command changes user and folders by itself; this is the program it calls.
        for script in Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"):
            return str(script)
    if program == "gcc" and not Path("/usr/include/stdio.h").exists():
        return None  # a compiler without a C library's headers compiles nothing
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")


def _version(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


def absent(programs: Iterable[str]) -> list[str]:
    """Those of the programs that are not installed."""
    return [program for program in programs if find(program) is None]


def ensure(programs: Iterable[str]) -> None:
    """Install whichever of these programs is missing, or raise MissingProgramError with what to type."""
    missing = absent(programs)
    if not missing:
        return
    packages = " ".join(PACKAGES[program] for program in missing).split()
    advice = f"{', '.join(missing)} not installed; on Debian or Ubuntu: sudo apt-get install {' '.join(packages)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise MissingProgramError(advice)
    print(f"installing {' '.join(packages)}", file=sys.stderr, flush=True)
    install(packages)
    if still := absent(missing):
        raise MissingProgramError(f"{', '.join(still)} still not found after installing {' '.join(packages)}")


def install(packages: list[str]) -> None:
    """Install Debian packages; none of their services is started by it."""
    with services_stay_down():
        command = [*APT_GET, "install", "--no-install-recommends", *packages]
        if _run(command).returncode != 0:
            # A fresh machine has no package lists, an old one has lists of files that are gone.
            _run([*APT_GET, "update"])
            done = _run(command)
            if done.returncode != 0:
                last = "\n".join(done.stdout.strip().splitlines()[-5:])
                raise MissingProgramError(f"apt-get install {' '.join(packages)} failed:\n{last}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@contextmanager
def services_stay_down(policy: Path = POLICY, lock: Path = LOCK) -> Iterator[None]:
    """While this is open, no package starts a service; afterwards the machine is as it was.

    A policy that is there already and says no is left alone; one that says yes is put aside meanwhile.
    Ours says no only while this process lives, so that one left behind by `kill -9` is harmless.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        # Two sandboxes installing at once: the first to leave would take the other's policy along.
        fcntl.flock(held, fcntl.LOCK_EX)
        aside = policy.with_name(f"{policy.name}.before-orders-sandbox")
        _put_back(policy, aside)
        if _denies(policy):
            yield
            return
        if os.path.lexists(policy):
            policy.rename(aside)
        beside = policy.with_name(f".{policy.name}.new")
        beside.write_text(f"#!/bin/sh\n{MARK}\nkill -0 {os.getpid()} 2>/dev/null && exit {DENIED}\nexit 0\n")
        beside.chmod(0o755)
        beside.rename(policy)
        try:
            yield
        finally:
            _put_back(policy, aside)


def _put_back(policy: Path, aside: Path) -> None:
    """Remove our own policy, also one left behind by a run that was killed, and restore the one put aside."""
    if policy.is_file() and MARK in policy.read_text(errors="replace"):
        policy.unlink()
    if os.path.lexists(aside) and not os.path.lexists(policy):
        aside.rename(policy)


def _denies(policy: Path) -> bool:
    if not os.access(policy, os.X_OK):
        return False
    return subprocess.run([policy, "postgresql", "start"], capture_output=True).returncode == DENIED
