"""PostgreSQL and RabbitMQ as one thing: opened together, closed together, broken one by one."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from dev.sandbox import packages
from dev.sandbox.choice import Choice, Kind, choose
from dev.sandbox.docker_servers import Containers, by_testcontainers, by_the_engine
from dev.sandbox.local_postgres import LocalPostgres
from dev.sandbox.local_rabbitmq import LocalRabbitMQ

LOCAL_PROGRAMS = ("postgres", "rabbitmq-server")


class NotOursError(Exception):
    """The servers of SERVERS=env belong to somebody else: the sandbox does not stop them."""


class Server(Protocol):
    """One server and the faults it can be given."""

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Start it on the same port and the same data; returns when it takes connections."""

    def stop(self) -> None:
        """End it cleanly."""

    def kill(self) -> None:
        """SIGKILL to all of its processes."""

    def pause(self) -> None:
        """SIGSTOP to all of its processes: connections stay open, nobody answers."""

    def resume(self) -> None:
        """SIGCONT after a pause."""


class Broker(Server, Protocol):
    """RabbitMQ has a tongue of its own for faults that no signal makes."""

    def control(self, *command: str) -> None:
        """`rabbitmqctl`, as for an alarm."""


class ForeignServer:
    """A server that was running before us and will be after us."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self) -> None:
        raise NotOursError(f"{self.name} is not ours to start")

    def stop(self) -> None:
        raise NotOursError(f"{self.name} is not ours to stop")

    def kill(self) -> None:
        raise NotOursError(f"{self.name} is not ours to kill")

    def pause(self) -> None:
        raise NotOursError(f"{self.name} is not ours to pause")

    def resume(self) -> None:
        raise NotOursError(f"{self.name} is not ours to resume")

    def control(self, *command: str) -> None:
        raise NotOursError(f"{self.name} is not ours to control")


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """What a system needs to run, and what a test needs to break it."""

    choice: Choice
    postgres: Server
    rabbitmq: Broker
    database_url: str
    amqp_url: str
    management_url: str | None

    @property
    def own_management_url(self) -> str | None:
        """The management interface of a broker that is ours; that of another's may not be there."""
        return None if self.kind == "env" else self.management_url

    @property
    def kind(self) -> Kind:
        return self.choice.kind

    @property
    def reason(self) -> str:
        return self.choice.reason


@contextmanager
def servers(
    choice: Choice | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    logs: Path | None = None,
    folder: Path | None = None,
    restart: bool = False,
    testcontainers: bool = False,
    flushes: bool = True,
) -> Iterator[Servers]:
    """Open the chosen servers, and end them on the way out.

    `folder` names a data folder that is used again when it exists, and outlives an owner that was killed;
    without it the data is thrown away with the owner, however that ends.
    `logs` is where NAME.log and NAME.pid go; `restart` has a server that dies started again.
    `testcontainers` has containers made by it.
    Without `flushes` PostgreSQL leaves flushing to the kernel, and containers keep their data in memory and are reached
    without the engine's proxy: for servers that are never stopped before they are thrown away.
    """
    choice = choice or choose(environ)
    match choice.kind:
        case "env":
            yield foreign(choice, environ)
        case "local":
            with local(choice, logs, folder, restart=restart, flushes=flushes) as opened:
                yield opened
        case "docker":
            with containers(choice, logs, restart=restart, testcontainers=testcontainers, flushes=flushes) as opened:
                yield opened


def foreign(choice: Choice, environ: Mapping[str, str]) -> Servers:
    """The servers that DATABASE_URL and AMQP_URL name."""
    return Servers(
        choice=choice,
        postgres=ForeignServer("postgres"),
        rabbitmq=ForeignServer("rabbitmq"),
        database_url=environ["DATABASE_URL"],
        amqp_url=environ["AMQP_URL"],
        management_url=environ.get("MANAGEMENT_URL") or usual_management_url(environ["AMQP_URL"]),
    )


def usual_management_url(amqp_url: str) -> str:
    """The management plugin of the first broker in the URL, with its user, on the port it has by default."""
    parts = urlsplit(amqp_url.split(",")[0])
    return f"http://{parts.username or 'guest'}:{parts.password or 'guest'}@{parts.hostname}:15672"


@contextmanager
def local(choice: Choice, logs: Path | None, folder: Path | None, *, restart: bool, flushes: bool) -> Iterator[Servers]:
    """PostgreSQL and RabbitMQ from the programs on this machine, in a folder of their own."""
    # Together: one run of apt instead of two.
    packages.ensure(LOCAL_PROGRAMS)
    throwaway = folder is None
    folder = folder or new_folder("orders-")
    postgres = LocalPostgres(folder, logs, restart=restart, throwaway=throwaway, flushes=flushes)
    rabbitmq = LocalRabbitMQ(folder, logs, restart=restart, throwaway=throwaway)
    try:
        in_parallel(postgres.start, rabbitmq.start)
        yield Servers(
            choice=choice,
            postgres=postgres,
            rabbitmq=rabbitmq,
            database_url=postgres.url,
            amqp_url=rabbitmq.url,
            management_url=rabbitmq.management_url,
        )
    finally:
        in_parallel(postgres.stop, rabbitmq.close)
        if throwaway:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)


@contextmanager
def containers(
    choice: Choice, logs: Path | None, *, restart: bool, testcontainers: bool, flushes: bool
) -> Iterator[Servers]:
    """PostgreSQL and RabbitMQ as containers of the Docker engine; their data goes with them."""
    folder = new_folder("orders-")
    make = by_testcontainers if testcontainers else by_the_engine
    both = Containers(folder, logs, make=make, restart=restart, throwaway=True, flushes=flushes)
    try:
        in_parallel(both.postgres.start, both.rabbitmq.start)
        if not flushes:
            both.shorten()
        yield Servers(
            choice=choice,
            postgres=both.postgres,
            rabbitmq=both.rabbitmq,
            database_url=both.database_url,
            amqp_url=both.amqp_url,
            management_url=both.management_url,
        )
    finally:
        in_parallel(both.postgres.close, both.rabbitmq.close)
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def new_folder(prefix: str) -> Path:
    """A temporary folder that the servers' users get through to their own folders in it."""
    where = Path(tempfile.gettempdir())
    if any(not above.stat().st_mode & 0o001 for above in (where, *where.parents)):
        # A TMPDIR of root's own, closed to others.
        where = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    folder.chmod(0o711)
    return folder


def in_parallel(*actions: Callable[[], None]) -> None:
    """Run them side by side, wait for all, and raise the first error there was."""
    with ThreadPoolExecutor(max(len(actions), 1), thread_name_prefix="servers") as threads:
        running = [threads.submit(action) for action in actions]
    for each in running:
        each.result()
