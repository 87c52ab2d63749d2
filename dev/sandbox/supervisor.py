"""A system in the background: `python -m dev.sandbox.supervisor up | down | serve`.

`up` finds the supervisor of this folder or starts one (`serve`), tells it what is wanted, and waits until that is so.
The supervisor owns servers and processes; with it, however it ends, all of them end.
A supervisor that was killed leaves its data folder behind, and the next `up` goes on with it.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dev.sandbox import packages
from dev.sandbox.choice import Choice, ChoiceError, choose
from dev.sandbox.keeper import is_alive
from dev.sandbox.packages import MissingProgramError
from dev.sandbox.process import ROOT, StartError, wait_until, write_atomically
from dev.sandbox.servers import LOCAL_PROGRAMS, Servers, in_parallel, new_folder, servers
from dev.sandbox.system import Counts, System

# Relative to the project, where every command of this module runs: a socket's path may have 107 characters, and a
# project's folder more. A test names a folder of its own.
RUN = Path(os.environ.get("SANDBOX_RUN", ".run"))
SOCKET = RUN / "control.sock"
PID_FILE = RUN / "supervisor.pid"
OLD_SECONDS = 15.0  # for the keepers of a supervisor that was killed to end what it left
SERVE_SECONDS = 10.0


class Supervisor:
    """One request at a time: bring the system to what is asked, or end it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: Servers | None = None
        self._system: System | None = None

    def up(self, environ: Mapping[str, str], say: "Say") -> None:
        counts = Counts.read(environ)
        environ = with_last_handler(environ, say)
        if self._servers is None or self._system is None:
            wait_for_the_old()
            choice = choose(environ)
            say(str(choice))
            programs = ("nginx", *(LOCAL_PROGRAMS if choice.kind == "local" else ()))
            if missing := packages.absent(programs):
                say(f"installing {', '.join(missing)}")
                packages.ensure(programs)
            if choice.kind != "env":
                say("starting PostgreSQL and RabbitMQ")
            opened = self._servers = self._stack.enter_context(
                servers(choice, environ=environ, logs=RUN.resolve(), folder=data_folder(choice), restart=True)
            )
            self._system = System(
                opened.database_url,
                opened.amqp_url,
                RUN.resolve(),
                counts,
                environ=environ,
                management_url=opened.own_management_url,
                users_url=opened.management_url,
            )
            self._stack.callback(self._system.close)
            say("migrating the database, declaring the queues, starting the processes")
        else:
            same_servers(self._servers, environ)
            say(str(self._servers.choice))
            if self._servers.kind != "env":
                for server in (self._servers.postgres, self._servers.rabbitmq):
                    server.resume()
                in_parallel(self._servers.postgres.start, self._servers.rabbitmq.start)
            self._system.change(environ=environ)
        self._system.migrate()
        if restarted := self._system.scale(counts):
            say(f"restarted, since their settings or code have changed: {', '.join(restarted)}")
        self._system.wait_ready()
        if handler := environ.get("ORDERS_HANDLER"):
            write_atomically(RUN / "handler", handler)
        env = "".join(f"{name}={value}\n" for name, value in self._system.env().items())
        write_atomically(RUN / "env", env, mode=0o600)
        say(f"ready: {self._system.base_url} ({RUN / 'env'} says where the rest is; `make down` ends it)")

    @property
    def is_up(self) -> bool:
        return self._system is not None and (RUN / "env").exists()

    def down(self) -> None:
        """End everything, in the order in which work flows, and remove what it left."""
        self._stack.close()
        clear()


class Say:
    """The other end of a request: lines for the person, then how it ended."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire

    def __call__(self, line: str) -> None:
        self._send({"say": line})

    def end(self, error: str | None = None) -> None:
        self._send({"end": error})

    def _send(self, answer: Mapping[str, object]) -> None:
        # Whoever asked may have gone; what was asked is done all the same.
        with suppress(OSError):
            self._wire.sendall(json.dumps(answer).encode() + b"\n")


def serve() -> int:
    """The supervisor's own process: answer requests until one of them ends it."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor = Supervisor()
    SOCKET.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(SOCKET))
        SOCKET.chmod(0o600)
        listener.listen()
        write_atomically(PID_FILE, f"{os.getpid()}\n")
        try:
            while True:
                wire, _ = listener.accept()
                with wire, wire.makefile("rb") as lines:
                    request = lines.readline()
                    if request and not handle(supervisor, json.loads(request), Say(wire)):
                        return 0
        finally:
            # Twice is harmless; a SIGTERM comes here first.
            supervisor.down()


def handle(supervisor: Supervisor, request: Any, say: Say) -> bool:
    """Do as asked; return whether to go on."""
    if request["do"] == "down":
        supervisor.down()
        say.end()
        return False
    try:
        supervisor.up(request["environ"], say)
    except (StartError, ChoiceError, MissingProgramError) as error:
        going_on = supervisor.is_up
        if not going_on:
            supervisor.down()
        say.end(str(error))
        return going_on
    say.end()
    return True


def with_last_handler(environ: Mapping[str, str], say: "Say") -> Mapping[str, str]:
    """Keep the ORDERS_HANDLER of the last `make up` unless another is given; either way say so."""
    kept = RUN / "handler"
    last = kept.read_text() if kept.exists() else ""
    given = environ.get("ORDERS_HANDLER")
    if last and not given:
        say(f"handler: {last}, as before (ORDERS_HANDLER=module:function changes it)")
        return {**environ, "ORDERS_HANDLER": last}
    if given and last and given != last:
        say(f"handler: {given} instead of {last}")
    return environ


def data_folder(choice: Choice) -> Path | None:
    """The data of this project's servers: an earlier run's where one was left, else a new folder."""
    if choice.kind != "local":
        return None
    kept = RUN / "data-folder"
    if kept.exists() and (folder := Path(kept.read_text().strip())).is_dir():
        return folder
    folder = new_folder("orders-up-")
    write_atomically(kept, f"{folder}\n")
    return folder


def same_servers(running: Servers, environ: Mapping[str, str]) -> None:
    """Data does not move from one kind of servers to another: refuse instead of losing sight of it."""
    asked = choose(environ) if environ.get("SERVERS") else running.choice
    urls = {"DATABASE_URL": running.database_url, "AMQP_URL": running.amqp_url}
    if asked.kind != running.kind or (asked.kind == "env" and any(environ[name] != urls[name] for name in urls)):
        raise ChoiceError(f"this system runs on other servers ({running.choice}): `make down` ends it first")


def wait_for_the_old() -> None:
    """Return when nothing of an earlier run is alive: its keepers see to that, within seconds."""
    deadline = time.monotonic() + OLD_SECONDS
    for file in RUN.glob("*.pid"):
        if file == PID_FILE:
            continue
        with suppress(ValueError, FileNotFoundError):
            pid = int(file.read_text())
            while is_alive(pid) and time.monotonic() < deadline:
                time.sleep(0.05)
        file.unlink(missing_ok=True)


def clear() -> None:
    """Remove what a run keeps in `.run`, but for its logs."""
    kept = RUN / "data-folder"
    if kept.exists():
        shutil.rmtree(kept.read_text().strip(), ignore_errors=True)
    shutil.rmtree(RUN / "nginx", ignore_errors=True)
    for file in (kept, RUN / "env", RUN / "handler", RUN / "ports.json", RUN / "control.sock", *RUN.glob("*.pid")):
        file.unlink(missing_ok=True)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two `make up` at once would start two supervisors."""
    RUN.mkdir(exist_ok=True, parents=True)
    with (RUN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def connect() -> socket.socket | None:
    wire = socket.socket(socket.AF_UNIX)
    try:
        wire.connect(str(SOCKET))
    except (FileNotFoundError, ConnectionRefusedError):
        wire.close()
        return None
    return wire


def ask(wire: socket.socket, request: Mapping[str, object]) -> str | None:
    """Send the request, print what is said meanwhile, and return the error, if it ended in one."""
    wire.sendall(json.dumps(request).encode() + b"\n")
    with wire, wire.makefile("rb") as answers:
        for line in answers:
            answer = json.loads(line)
            if "end" in answer:
                error: str | None = answer["end"]
                return error
            print(answer["say"], flush=True)
    return f"the supervisor ended; its log is {RUN / 'supervisor.log'}"


def start_supervisor() -> socket.socket:
    """Start one in the background, with nothing of this terminal, and return a connection to it."""
    with (RUN / "supervisor.log").open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "dev.sandbox.supervisor", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + SERVE_SECONDS
    while time.monotonic() < deadline and started.poll() is None:
        if wire := connect():
            return wire
        time.sleep(0.02)
    raise StartError(f"the supervisor did not start; its log is {RUN / 'supervisor.log'}")


def up() -> int:
    with one_at_a_time():
        try:
            wire = connect() or start_supervisor()
            error = ask(wire, {"do": "up", "environ": dict(os.environ)})
        except StartError as reason:
            error = str(reason)
    if error is not None:
        print(f"make up: {error}", file=sys.stderr)
        return 1
    return 0


def down() -> int:
    with one_at_a_time():
        wire = connect()
        if wire is None:
            wait_for_the_old()
            clear()
            return 0
        supervisor = int(PID_FILE.read_text())
        error = ask(wire, {"do": "down"})
        wait_until(lambda: not is_alive(supervisor), 5, lambda: "the supervisor does not end")
    if error is not None:
        print(f"make down: {error}", file=sys.stderr)
        return 1
    return 0


COMMANDS = {"up": up, "down": down, "serve": serve}


def main() -> int:
    os.chdir(ROOT)
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: python -m dev.sandbox.supervisor {' | '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[sys.argv[1]]()


if __name__ == "__main__":
    sys.exit(main())
