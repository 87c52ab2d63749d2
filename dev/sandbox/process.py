"""One program under a keeper: started, stopped, killed, paused, and started again when it dies."""

import http.client
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

import msgspec

from dev.sandbox import keeper

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 30.0  # between the polite signal and SIGKILL, as in compose.yml
STANDSTILL_SECONDS = 5.0  # within which every thread of a process that is paused gets its signal
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 2.0
STEADY_SECONDS = 5.0  # a process that lived so long was started well
REFUSALS = 3  # deaths in a row, never ready, after which it is said to refuse its start
BAD_SETTING = 2  # the exit code for it: another try cannot help


class StartError(Exception):
    """A process of the sandbox did not start; the message holds its last line."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, and how it likes to be ended."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    user: str | None = None
    stop_signal: int = signal.SIGTERM
    last_signal: int = signal.SIGKILL  # when the owner is gone
    farewell: tuple[str, ...] = ()  # commands to run when the owner is gone
    remove: tuple[str, ...] = ()  # folders to remove when the owner is gone
    ready_url: str | None = None
    code: str = ""  # the state of its sources: a spec with another one is another process


class Running(Protocol):
    """A process that was started: as much of `subprocess.Popen` as is used here."""

    @property
    def pid(self) -> int: ...

    @property
    def stdin(self) -> IO[bytes] | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def poll(self) -> int | None: ...


class Launch(Protocol):
    """Starts a command: `by_popen`, or what tests put in its place to save the imports."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        cwd: Path,
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> Running: ...


def by_popen(
    command: Sequence[str],
    *,
    stdin: int,
    stdout: IO[bytes],
    stderr: IO[bytes],
    cwd: Path,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=dict(env), pass_fds=pass_fds
    )


class Process:
    """A spec in execution. Its output goes to `NAME.log`, the pid that a signal stops to `NAME.pid`."""

    def __init__(self, spec: Spec, folder: Path, *, restart: bool, launch: Launch = by_popen) -> None:
        self.spec = spec
        self.restart = restart
        self._launch = launch
        self.log = folder / f"{spec.name}.log"
        self.pid_file = folder / f"{spec.name}.pid"
        self.starts = 0
        self.refusals = 0
        self.last_exit: int | None = None
        self._changed = threading.Condition()
        self._wanted = False
        self._keeper: Running | None = None
        self._pid: int | None = None
        self._watcher: threading.Thread | None = None
        self._log_start = 0
        self.before_start: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """The pid that a signal stops, or None while nothing runs."""
        return self._pid

    @property
    def wanted(self) -> bool:
        return self._wanted

    def start(self) -> None:
        """Start it and return once it has a pid; nothing happens if it runs."""
        with self._changed:
            self._wanted = True
            self.refusals = 0
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name=f"watch {self.name}", daemon=True)
                self._watcher.start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._pid is not None or self._watcher is None or self.refusals > 0, 10)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Send the polite signal, wait for the end, and kill what is left after `seconds`."""
        with self._changed:
            self._wanted = False
            self._changed.notify_all()
            self._signal_all(signal.SIGCONT)
            self._signal_main(self.spec.stop_signal)
            if not self._changed.wait_for(self._is_gone, seconds):
                self._signal_all(signal.SIGKILL)
                self._changed.wait_for(self._is_gone, 10)
        self.pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL to every process of it, at once; supervision, where it is on, starts it again."""
        with self._changed:
            before = self.starts
            self._signal_main(signal.SIGKILL)
            self._signal_all(signal.SIGKILL)
            self._changed.wait_for(lambda: self._pid is None or self.starts != before, 10)

    def terminate(self) -> None:
        """Send the polite signal and return; supervision, where it is on, starts it again."""
        with self._changed:
            self._signal_main(self.spec.stop_signal)

    def reload(self) -> None:
        with self._changed:
            self._signal_main(signal.SIGHUP)

    def pause(self) -> None:
        """SIGSTOP to every process of it, and wait until they stand still.

        A stopped server keeps its connections and its locks.
        """
        stopped: set[int] = set()
        with self._changed:
            self._signal_main(signal.SIGSTOP)
            while new := set(self.family()) - stopped:
                for pid in new:
                    keeper.send(pid, signal.SIGSTOP)
                stopped |= new
        until = time.monotonic() + STANDSTILL_SECONDS
        while not all(map(keeper.is_stopped, stopped)) and time.monotonic() < until:
            time.sleep(0.001)

    def resume(self) -> None:
        with self._changed:
            self._signal_all(signal.SIGCONT)

    def is_ready(self) -> bool:
        """It runs and, where it has a health endpoint, says so there."""
        if self._pid is None:
            return False
        return self.spec.ready_url is None or answers(self.spec.ready_url)

    def last_line(self) -> str:
        """The last line it wrote since its last start: why it ended, if it did."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        return lines[-1].strip() if lines else f"it wrote nothing, and exited with {self.last_exit}"

    def refused(self) -> bool:
        """It keeps dying before it was ever ready."""
        return self.refusals >= REFUSALS or (self.refusals > 0 and self.last_exit == BAD_SETTING)

    def succeed(self) -> None:
        """Whoever waited has seen it ready: from here on a death is an accident, not a refusal."""
        self.refusals = 0

    def _is_gone(self) -> bool:
        return self._keeper is None

    def family(self) -> list[int]:
        """Every process of it, the main one first."""
        return [] if self._keeper is None else keeper.descendants(self._keeper.pid)

    def _signal_main(self, number: int) -> None:
        # While the keeper lives, this pid cannot be another's: nobody else collects it.
        if self._pid is not None and self._keeper is not None and self._keeper.poll() is None:
            keeper.send(self._pid, number)

    def _signal_all(self, number: int) -> None:
        for pid in self.family():
            keeper.send(pid, number)

    def _watch(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            with self._changed:
                if not self._wanted:
                    self._watcher = None
                    self._changed.notify_all()
                    return
                if self.before_start is not None:
                    self.before_start()
                started_at = time.monotonic()
                running = self._keeper = self._spawn()
                self.starts += 1
                self._changed.notify_all()
            exit_code = running.wait()
            with self._changed:
                assert running.stdin is not None
                running.stdin.close()
                self._keeper = self._pid = None
                self.last_exit = exit_code
                if time.monotonic() - started_at >= STEADY_SECONDS:
                    backoff = FIRST_BACKOFF_SECONDS
                    self.refusals = 0
                else:
                    self.refusals += 1
                self._wanted = self._wanted and self.restart
                self._changed.notify_all()
                if self._wanted:
                    self._changed.wait_for(lambda: not self._wanted, backoff)
                    backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)

    def _spawn(self) -> Running:
        report, reporter = os.pipe()
        command = [sys.executable, "-I", "-S", keeper.__file__, f"--report={reporter}"]
        if self.spec.user is not None:
            command.append(f"--user={self.spec.user}")
        command.append(f"--last-signal={int(self.spec.last_signal)}")
        command += [f"--farewell={each}" for each in self.spec.farewell]
        command += [f"--remove={each}" for each in self.spec.remove]
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            # The open end of its stdin is what ties it to us: it closes with this process.
            running = self._launch(
                [*command, "--", *self.spec.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=dict(self.spec.environ),
                pass_fds=[reporter],
            )
        os.close(reporter)
        with open(report, "rb") as answer:
            line = answer.readline()
        if line:
            self._pid = int(line)
            write_atomically(self.pid_file, f"{self._pid}\n")
        return running


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Whoever reads the file meanwhile finds the old text or the new one, never half of it."""
    beside = path.with_name(f".{path.name}.new")
    beside.touch(mode)
    beside.write_text(text)
    beside.replace(path)


def answers(url: str, seconds: float = 2.0) -> bool:
    """A GET of the URL is answered with 200."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def run_as(*names: str) -> str | None:
    """The first of these users that exists, if we are root; else nobody but ourselves."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in (*names, "nobody") if name in known), None)


def wait_until(fact: Callable[[], bool], seconds: float, complaint: Callable[[], str]) -> None:
    """Return when the fact holds; raise StartError with the complaint when it does not in time."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise StartError(complaint())
        time.sleep(0.05)
