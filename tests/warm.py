"""Start a program of ours from a parent that has imported it already: `tests.warm_parent`.

Two thirds of a second of imports for each of several hundred starts were most of what the tests cost.
What is started so is a process like any other: its own pid, session, signals, environment, folder and descriptors.
Where a start itself is at stake, tests use `subprocess`, as the sandbox, the demo and chaos do.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import msgspec

from dev.sandbox import keeper, system
from dev.sandbox.process import ROOT
from tests.warm_parent import Job

MODULES = ("alembic", "orders.app", "orders.cli", "orders.worker", "relay")
ORDERS = str(Path(sys.executable).with_name("orders"))
KEEPER = [sys.executable, "-I", "-S", keeper.__file__]
SECONDS = 60.0

Given = int | IO[bytes]


_where: Callable[[str], str] | None = None


def find_parents_by(where: Callable[[str], str]) -> None:
    """Take the function that starts the parent of a module, unless it runs, and returns the path of its socket."""
    global _where
    _where = where


class Parent:
    """The parent of one module's processes; it ends with its owner."""

    def __init__(self, folder: Path, module: str) -> None:
        self.path = folder / module
        command = [sys.executable, "-m", "tests.warm_parent", str(self.path), module]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.PIPE)
        while not self.path.exists():
            if self._process.poll() is not None:
                raise ChildProcessError(f"the parent of {module} exited with {self._process.returncode}")
            time.sleep(0.005)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self.path.unlink()


def upgrade(database_url: str) -> None:
    """`alembic upgrade head` on this database."""
    system.upgrade(database_url, launch)


def declare_topology(amqp_url: str) -> None:
    """`orders topology` on this broker."""
    system.declare_topology(amqp_url, launch)


class Child:
    """What `subprocess.Popen` is, as far as tests use it."""

    def __init__(self, wire: socket.socket, stdin: IO[bytes] | None) -> None:
        self._wire = wire
        self._lock = threading.Lock()
        with wire.makefile("rb", buffering=0) as answer:
            line = answer.readline()
        if not line:
            raise ChildProcessError("the parent is gone")
        self.pid = int(line)
        self.stdin = stdin
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code as `subprocess` has it, or None while it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._wire], [], [], 0)[0]:
                with self._wire, self._wire.makefile("rb") as answer:
                    line = answer.readline()
                self.returncode = int(line) if line else -signal.SIGKILL
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise TimeoutExpired when it still runs after so many seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            code = self.poll()
            if code is not None:
                return code
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                assert timeout is not None
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            try:
                select.select([self._wire], [], [], left)
            except ValueError:
                # Another thread has read the answer meanwhile.
                continue

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def launch(
    command: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: Given,
    stderr: Given,
    cwd: Path,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
) -> "Child | subprocess.Popen[bytes]":
    """Start the command as `subprocess.Popen` does: from a warm parent if it is a program of ours."""
    kept: list[str] | None = None
    program = list(command)
    if program[: len(KEEPER)] == KEEPER:
        own = program.index("--")
        kept, program = program[len(KEEPER) : own], program[own + 1 :]
    module = module_of(program)
    if _where is None or module is None or (kept is not None and any(each.startswith("--user") for each in kept)):
        return subprocess.Popen(
            list(command), stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=dict(env), pass_fds=pass_fds
        )

    opened: list[int] = []
    writer: IO[bytes] | None = None
    if stdin == subprocess.PIPE:
        reader, write_end = os.pipe()
        writer = os.fdopen(write_end, "wb", buffering=0)
        opened.append(reader)
    else:
        reader = os.open(os.devnull, os.O_RDONLY)
        opened.append(reader)
    out = stdout if isinstance(stdout, int) else stdout.fileno()
    err = stderr if isinstance(stderr, int) else stderr.fileno()
    if out == subprocess.DEVNULL:
        out = os.open(os.devnull, os.O_WRONLY)
        opened.append(out)
    if err == subprocess.STDOUT:
        err = out
    job = Job(command=program, cwd=str(cwd), environ=dict(env), descriptors=[0, 1, 2, *pass_fds], kept=kept)
    body = msgspec.json.encode(job)
    wire = socket.socket(socket.AF_UNIX)
    try:
        wire.connect(_where(module))
        socket.send_fds(wire, [len(body).to_bytes(4, "big")], [reader, out, err, *pass_fds])
        wire.sendall(body)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return Child(wire, writer)


def module_of(command: Sequence[str]) -> str | None:
    """The module whose parent can run this command, or None."""
    if command[0] == ORDERS:
        return "orders.cli"
    if command[0] == sys.executable and command[1] == "-m" and command[2] in MODULES:
        return command[2]
    return None


class Captured:
    """A command that was started, and what it writes, as `subprocess.Popen` has them with pipes."""

    def __init__(self, command: Sequence[str], *, cwd: Path = ROOT, env: Mapping[str, str], given: str = "") -> None:
        self.command = list(command)
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]  # noqa: SIM115  # the stack closes them
        out, err = self._files
        stdin = subprocess.PIPE if given else subprocess.DEVNULL
        self._running = launch(command, stdin=stdin, stdout=out, stderr=err, cwd=cwd, env=env)
        if self._running.stdin is not None:
            with self._running.stdin as writer:
                writer.write(given.encode())

    @property
    def returncode(self) -> int | None:
        return self._running.poll()

    def kill(self) -> None:
        """End it, if it runs, and forget what it wrote."""
        self._running.kill()
        self._running.wait()
        self._stack.close()

    def communicate(self, timeout: float = SECONDS) -> tuple[str, str]:
        """Wait for its end, and return what it wrote to stdout and stderr; kill it when it takes longer."""
        try:
            self._running.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        with self._stack:
            for file in self._files:
                file.seek(0)
            out, err = (file.read().decode() for file in self._files)
        return out, err


def run(
    command: Sequence[str], *, cwd: Path = ROOT, env: Mapping[str, str], given: str = "", timeout: float = SECONDS
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end; return its exit code and what it wrote."""
    running = Captured(command, cwd=cwd, env=env, given=given)
    out, err = running.communicate(timeout)
    assert running.returncode is not None
    return subprocess.CompletedProcess(running.command, running.returncode, out, err)
