"""A parent that has imported all that a program imports: `python -m tests.warm_parent SOCKET MODULE`.

Each request at its socket forks a child that goes on as `python -m MODULE` would: with the arguments, environment,
folder and descriptors of the request, default signals, and a keeper above it where the request names one.
It ends when its stdin does, and takes along what it started without a keeper.
"""

import ast
import fcntl
import gc
import importlib.util
import os
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn

import msgspec

from dev.sandbox import keeper

# Where the descriptors of a request wait, above those that a request names.
ASIDE = 500
# What these programs import late, from files that no import statement names.
LATE = {
    "alembic": (
        "alembic.command", "alembic.context", "alembic.runtime.migration", "alembic.ddl.postgresql",
        "psycopg", "sqlalchemy.dialects.postgresql.psycopg",
    ),
}  # fmt: skip


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, as `subprocess.Popen` takes it; `descriptors` are the numbers of those that come along."""

    command: list[str]
    cwd: str
    environ: dict[str, str]
    descriptors: list[int]
    kept: list[str] | None  # the arguments of a keeper above it


class RunHereError(BaseException):
    """The keeper's child is ready to become its program."""


def preload(module: str) -> None:
    """Run the import statements of the module, wherever they stand in it, and nothing else of it."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, "rb") as source:
        tree = ast.parse(source.read())
    space = {"__name__": "preload", "__package__": spec.parent}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), spec.origin, "exec"), space)
    for name in LATE.get(module, ()):
        importlib.import_module(name)


def serve(listener: socket.socket) -> Callable[[], None]:
    """Fork for each request. Return in a child alone: what it is to do."""
    running: dict[int, socket.socket] = {}
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = select.poll()
    for descriptor in (0, wake, listener.fileno()):
        events.register(descriptor, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in events.poll()]
        if 0 in ready:
            end(running)
        if wake in ready:
            os.read(wake, 4096)
            reap(running)
        if listener.fileno() in ready:
            client, _ = listener.accept()
            job, descriptors = receive(client)
            pid = os.fork()
            if pid == 0:
                for wire in (listener, client, *running.values()):
                    wire.close()
                return become(job, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            running[pid] = client
            client.sendall(b"%d\n" % pid)


def end(pids: Iterable[int]) -> NoReturn:
    """The owner is gone; keepers, which have sessions of their own, see that for themselves."""
    for pid in pids:
        with suppress(ProcessLookupError):
            if os.getsid(pid) != pid:
                os.kill(pid, signal.SIGKILL)
    os._exit(0)


def reap(running: dict[int, socket.socket]) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with running.pop(pid) as client, suppress(BrokenPipeError):
                client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def receive(client: socket.socket) -> tuple[Job, list[int]]:
    """Read one request: its length in four bytes, which the descriptors come with, and a job as JSON."""
    length, descriptors, _, _ = socket.recv_fds(client, 4, 16)
    with client.makefile("rb") as wire:
        return msgspec.json.decode(wire.read(int.from_bytes(length, "big")), type=Job), descriptors


def become(job: Job, descriptors: list[int]) -> Callable[[], None]:
    """Take on what a child of `subprocess.Popen` would have; return what runs the command."""
    by_default()
    aside = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, ASIDE) for each in descriptors]
    os.closerange(3, ASIDE)
    for number, each in zip(job.descriptors, aside, strict=True):
        os.dup2(each, number)
        os.close(each)
    os.environ.clear()
    os.environ.update(job.environ)
    time.tzset()
    os.chdir(job.cwd)
    return lambda: keep(job) if job.kept is not None else run(job.command)


def by_default() -> None:
    """The signals of a Python that has just started."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)


def keep(job: Job) -> None:
    """Be the keeper, and in its child the program."""

    def run_here(command: list[str]) -> NoReturn:
        raise RunHereError

    assert job.kept is not None
    with suppress(RunHereError):
        os._exit(keeper.main([*job.kept, "--", *job.command], run_here))
    by_default()
    os.closerange(3, ASIDE)
    run(job.command)


def run(command: list[str]) -> None:
    """Run `python -m MODULE ...`, or `orders ...`, as the main program of this process."""
    sys.stdout.reconfigure(  # type: ignore[union-attr]  # it is what an interpreter starts with
        line_buffering=os.isatty(1), write_through=bool(os.environ.get("PYTHONUNBUFFERED"))
    )
    if command[1:2] == ["-m"]:
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def main() -> Callable[[], None]:
    path, module = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)  # whoever sees the path may connect
    preload(module)
    gc.collect()
    gc.freeze()
    return serve(listener)


if __name__ == "__main__":
    main()()
