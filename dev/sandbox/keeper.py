"""Run one command, and let nothing of it outlive its owner.

The owner holds the other end of this process's stdin and does nothing with it.
When that end closes, the owner is gone, however it went: `kill -9` closes it too.
A parent-death signal alone would not do: it reaches one process, belongs to the thread that forked, and never
comes for a grandchild, such as a backend of PostgreSQL that was stopped by SIGSTOP.

Standard library only: it runs with `python -I -S`, so that it costs little beside each program.
"""

import argparse
import ctypes
import os
import pwd
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LAST_SIGNAL_SECONDS = 5.0  # for a PostgreSQL to remove its shared memory after SIGQUIT; SIGKILL comes next

libc = ctypes.CDLL(None, use_errno=True)


def descendants(root: int) -> list[int]:
    """Every process below `root`, parents before their children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            # A process may end while we look.
            with suppress(OSError):
                stat = Path("/proc", entry, "stat").read_bytes()
                # The name stands in parentheses and may hold anything, a parenthesis too.
                state, parent = stat[stat.rindex(b")") + 2 :].split()[:2]
                if state != b"Z":
                    children.setdefault(int(parent), []).append(int(entry))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def is_alive(pid: int) -> bool:
    """It exists, and has not merely ended without being collected."""
    try:
        stat = Path("/proc", str(pid), "stat").read_bytes()
    except OSError:
        return False
    return stat[stat.rindex(b")") + 2 :].split()[0] != b"Z"


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def is_stopped(pid: int) -> bool:
    """Say whether no thread of it runs any more: a signal reaches each of them when it next gets a processor."""
    for stat in Path("/proc", str(pid), "task").glob("*/stat"):
        with suppress(OSError):
            if stat.read_bytes().rpartition(b")")[2].split()[0] not in (b"T", b"t", b"Z", b"X"):
                return False
    return True


def become(user: str) -> None:
    entry = pwd.getpwnam(user)
    os.setgid(entry.pw_gid)
    os.initgroups(user, entry.pw_gid)
    os.setuid(entry.pw_uid)


def execute(command: list[str]) -> NoReturn:
    """Become the command."""
    os.execvp(command[0], command)


def start(command: list[str], user: str | None, run: Callable[[list[str]], NoReturn]) -> int:
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # Python ignores these two, and what is ignored stays so across exec.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if user is not None:
            become(user)
        # After setuid, which clears it. It covers a keeper that is itself killed.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == keeper:
            run(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def reap(main: int) -> int | None:
    """Collect what has ended; return the main child's exit status if it is among them."""
    status = None
    with suppress(ChildProcessError):
        while True:
            pid, code = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == main:
                status = os.waitstatus_to_exitcode(code)
    return status


def end_gently(main: int, number: int) -> None:
    for pid in descendants(os.getpid()):
        send(pid, signal.SIGCONT)
    send(main, number)
    deadline = time.monotonic() + LAST_SIGNAL_SECONDS
    while reap(main) is None and time.monotonic() < deadline and main in descendants(os.getpid()):
        time.sleep(0.02)


def end_all(main: int) -> None:
    """Kill until nothing is left: a process may fork between the look and the signal."""
    while has_children():
        for pid in descendants(os.getpid()):
            send(pid, signal.SIGKILL)
        reap(main)
        time.sleep(0.005)


def has_children() -> bool:
    """Orphans become children of this process, and those that have ended stay so until they are collected."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def main(arguments: Sequence[str] | None = None, run: Callable[[list[str]], NoReturn] = execute) -> int:
    """Keep a command by these arguments, those of this process by default; `run` turns the child into it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--user", help="run the command as this user")
    parser.add_argument("--report", type=int, required=True, help="descriptor that gets the command's pid")
    parser.add_argument("--last-signal", type=int, default=signal.SIGKILL, help="sent when the owner is gone")
    parser.add_argument("--farewell", action="append", default=[], help="command to run when the owner is gone")
    parser.add_argument("--remove", action="append", default=[], help="folder to remove when the owner is gone")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)

    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    # A session of its own: Ctrl-C at the terminal is for the owner, who then ends each child in its order.
    os.setsid()
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    terminated: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))

    os.set_inheritable(options.report, False)
    child = start(options.command, options.user, run)
    os.write(options.report, b"%d\n" % child)
    os.close(options.report)

    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            status = reap(child)
            if status is not None:
                end_all(child)
                return status if status >= 0 else 128 - status
        if terminated or (0 in ready and not os.read(0, 1)):
            break

    if options.last_signal != signal.SIGKILL:
        end_gently(child, options.last_signal)
    end_all(child)
    for command in options.farewell:
        subprocess.run(shlex.split(command), stdin=subprocess.DEVNULL, check=False)
    for folder in options.remove:
        shutil.rmtree(folder, ignore_errors=True)
        # The folder above belongs to the same owner; whoever leaves last takes it along.
        with suppress(OSError):
            os.rmdir(os.path.dirname(folder))
    return 128 + signal.SIGKILL


if __name__ == "__main__":
    sys.exit(main())
