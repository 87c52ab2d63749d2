"""PostgreSQL and RabbitMQ as containers, on fixed ports of 127.0.0.1.

Testcontainers makes them for tests, the engine's own interface for everybody else; faults are the same for both.
A keeper removes them when the owner is gone.
Testcontainers' own reaper is off: its port is open on all addresses of the machine, and its image is one more to have.
"""

import os
import secrets
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import docker  # type: ignore[import-untyped]  # see docker_engine
import psycopg

from dev.sandbox import docker_engine
from dev.sandbox.docker_engine import POSTGRES_IMAGE, RABBITMQ_IMAGE
from dev.sandbox.local_postgres import ROOM, WITHOUT_FLUSHES
from dev.sandbox.local_rabbitmq import ControlError, speaks_amqp
from dev.sandbox.ports import free_port
from dev.sandbox.process import STOP_SECONDS, Process, Spec, wait_until
from dev.sandbox.vhosts import Management

START_SECONDS = 120.0
SHORT_SECONDS = 2.0
USER = "orders"
DATABASE = "orders"
VHOST = "orders"

# The container, and how to be done with whatever client made it.
Made = tuple[Any, Callable[[], None]]


class Maker(Protocol):
    """Makes and starts a container: image, name, settings, arguments, host ports by its own, folders in memory."""

    def __call__(
        self,
        image: str,
        name: str,
        settings: dict[str, str],
        ports: dict[int, int],
        arguments: Sequence[str],
        in_memory: dict[str, str],
    ) -> Made: ...


def by_the_engine(
    image: str,
    name: str,
    settings: dict[str, str],
    ports: dict[int, int],
    arguments: Sequence[str],
    in_memory: dict[str, str],
) -> Made:
    client = docker.from_env()
    bound = {f"{inside}/tcp": ("127.0.0.1", outside) for inside, outside in ports.items()}
    container = client.containers.run(
        image,
        list(arguments) or None,
        name=name,
        hostname=name,
        environment=settings,
        ports=bound,
        tmpfs=in_memory,
        detach=True,
        labels={"orders": "sandbox"},
    )
    return container, client.close


def by_testcontainers(
    image: str,
    name: str,
    settings: dict[str, str],
    ports: dict[int, int],
    arguments: Sequence[str],
    in_memory: dict[str, str],
) -> Made:
    # Imported late: half a second that nobody else has to wait for.
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.config import ConnectionMode, testcontainers_config
    from testcontainers.core.container import DockerContainer

    testcontainers_config.ryuk_disabled = True
    testcontainers_config.connection_mode_override = ConnectionMode.docker_host
    made: DockerContainer
    if image == POSTGRES_IMAGE:
        made = PostgresContainer(
            image,
            username=settings["POSTGRES_USER"],
            password=settings["POSTGRES_PASSWORD"],
            dbname=settings["POSTGRES_DB"],
            driver=None,
        )
        made.ports.clear()
    else:
        made = DockerContainer(image)
    made.with_name(name).with_envs(**settings).with_kwargs(hostname=name)
    if arguments:
        made.with_command(list(arguments))
    made.tmpfs.update(in_memory)
    for inside, outside in ports.items():
        # The engine takes an address and a port; Testcontainers passes on what it is given, but knows ports only.
        made.ports[f"{inside}/tcp"] = ("127.0.0.1", outside)  # type: ignore[assignment]
    made.start()
    return made.get_wrapped_container(), made.get_docker_client().client.close


class ContainerServer:
    """One server in one container, which keeps its port and data until it is closed."""

    def __init__(
        self,
        name: str,
        image: str,
        settings: dict[str, str],
        ports: dict[int, int],
        is_ready: Callable[[], bool],
        *,
        arguments: Sequence[str] = (),
        in_memory: dict[str, str],
        make: Maker,
        folder: Path,
        logs: Path | None,
        restart: bool,
        throwaway: bool,
    ) -> None:
        self.name = name
        self._container_name = container_name = f"orders-{name}-{secrets.token_hex(4)}"
        self._make: Callable[[], Made] = lambda: make(image, container_name, settings, ports, arguments, in_memory)
        self._is_ready = is_ready
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        watch = (sys.executable, "-m", "dev.sandbox.container_watch")
        self._watch = Process(
            Spec(
                name=name,
                command=(*watch, *(["--keep-up"] if restart else []), self._container_name),
                environ=os.environ,
                farewell=(shlex.join([*watch, "--remove", self._container_name]),),
                remove=(str(own),) if throwaway else (),
            ),
            own,
            restart=False,
        )
        if logs is not None:
            # Its pid stays out of there: a signal to it would not reach the server.
            self._watch.log = logs / f"{name}.log"
        self._container: Any = None
        self._forget: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Make the container, or start it again on its port and data; returns when it takes connections."""
        if self._container is None:
            # First: whatever is made from here on, somebody removes it.
            self._watch.start()
            self._container, self._forget = self._make()
        else:
            self._container.start()
        wait_until(self._is_ready, START_SECONDS, lambda: f"{self.name}: {self._watch.last_line()}")

    def stop(self) -> None:
        self._container.stop(timeout=int(STOP_SECONDS))

    def kill(self) -> None:
        self._container.kill()
        self._container.wait()

    def pause(self) -> None:
        self._container.pause()

    def resume(self) -> None:
        self._container.reload()
        if self._container.status == "paused":
            self._container.unpause()

    def control(self, *command: str) -> None:
        """`rabbitmqctl` in the container."""
        done = self._container.exec_run(["rabbitmqctl", *command])
        if done.exit_code != 0:
            raise ControlError(f"rabbitmqctl {' '.join(command)}: {done.output.decode().strip()}")

    def own_address(self) -> str:
        """The container's address in the engine's network: a way past the engine's proxy, until it is stopped."""
        self._container.reload()
        address: str = self._container.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        return address

    def close(self) -> None:
        """Remove it with its data."""
        docker_engine.remove(self._container_name)
        self._forget()
        self._watch.stop(0)


class Containers:
    """Both servers, not yet started."""

    def __init__(
        self, folder: Path, logs: Path | None, *, make: Maker, restart: bool, throwaway: bool, flushes: bool = True
    ) -> None:
        password = secrets.token_hex(16)
        port, amqp_port, management_port = free_port(), free_port(), free_port()
        self.database_url = f"postgresql://{USER}:{password}@127.0.0.1:{port}/{DATABASE}"
        self.amqp_url = f"amqp://{USER}:{password}@127.0.0.1:{amqp_port}/{VHOST}"
        self.management_url = f"http://{USER}:{password}@127.0.0.1:{management_port}"
        self.postgres = ContainerServer(
            "postgres",
            POSTGRES_IMAGE,
            {"POSTGRES_USER": USER, "POSTGRES_PASSWORD": password, "POSTGRES_DB": DATABASE},
            {5432: port},
            lambda: takes_connections(self.database_url),
            arguments=[f"--{name}={value}" for name, value in (ROOM if flushes else WITHOUT_FLUSHES).items()],
            in_memory={} if flushes else {"/var/lib/postgresql/data": ""},
            make=make,
            folder=folder,
            logs=logs,
            restart=restart,
            throwaway=throwaway,
        )
        self.rabbitmq = ContainerServer(
            "rabbitmq",
            RABBITMQ_IMAGE,
            {"RABBITMQ_DEFAULT_USER": USER, "RABBITMQ_DEFAULT_PASS": password, "RABBITMQ_DEFAULT_VHOST": VHOST},
            {5672: amqp_port, 15672: management_port},
            lambda: speaks_amqp(amqp_port) and Management(self.management_url).answers(),
            in_memory={} if flushes else {"/var/lib/rabbitmq": ""},
            make=make,
            folder=folder,
            logs=logs,
            restart=restart,
            throwaway=throwaway,
        )

    def shorten(self) -> None:
        """Give the containers' own addresses where this machine can reach them; others know the published ports."""
        with suppress(KeyError):
            postgres, rabbitmq = self.postgres.own_address(), self.rabbitmq.own_address()
            database_url = with_address(self.database_url, postgres, 5432)
            management_url = with_address(self.management_url, rabbitmq, 15672)
            # With the password, since the address may be another's where the engine is not on this machine.
            if takes_connections(database_url) and Management(management_url, SHORT_SECONDS).answers():
                self.database_url, self.management_url = database_url, management_url
                self.amqp_url = with_address(self.amqp_url, rabbitmq, 5672)


def with_address(url: str, address: str, port: int) -> str:
    """The same user and path, on another server."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@{address}:{port}"))


def takes_connections(database_url: str) -> bool:
    try:
        with psycopg.connect(database_url, connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False
