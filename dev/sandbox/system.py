"""The processes of the system in front of given servers: migrated, started, kept up, scaled, ended.

with servers() as its_servers, System(its_servers.database_url, its_servers.amqp_url, folder) as system:
    httpx.post(f"{system.base_url}/orders", json=...)
    system.process("relay-1").kill()
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

import msgspec

from dev.sandbox import nginx, packages, roles
from dev.sandbox.ports import free_port, is_free
from dev.sandbox.process import ROOT, Launch, Process, Spec, StartError, by_popen, write_atomically
from dev.sandbox.servers import in_parallel

Role = Literal["api", "relay", "worker"]

READY_SECONDS = 60.0  # a process tries its servers for 30 s before it gives up
MODULES: dict[Role, str] = {"api": "orders.app", "relay": "relay", "worker": "orders.worker"}
PREFIXES: dict[Role, str] = {"api": "ORDERS", "relay": "RELAY", "worker": "WORKER"}
# What a caller's make, shell or pytest leaves in the environment is no setting of a process.
NOT_SETTINGS = ("MAKE", "MFLAGS", "PYTEST_", "APIS", "RELAYS", "WORKERS", "SERVERS", "COVERAGE_")
# What a process reads; when one of these changes between two `make up`, it is restarted.
SETTINGS: dict[Role, tuple[str, ...]] = {
    "api": ("ORDERS_", "LOG_LEVEL", "DATABASE_URL"),
    "relay": ("RELAY_", "LOG_LEVEL", "DATABASE_URL", "AMQP_URL"),
    "worker": ("WORKER_", "WORK_", "ORDERS_", "LOG_LEVEL", "DATABASE_URL", "AMQP_URL"),
}
REQUIRED_ROUTES = "orders/order.placed,orders/order.redriven"
DEFAULTS = {"RELAY_REQUIRED_QUEUES": "orders.work", "RELAY_EXCHANGES": "orders", "PYTHONUNBUFFERED": "1"}


CODE: dict[Role, str] = {"api": "src/orders", "relay": "relay", "worker": "src/orders"}


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each; nginx is one."""

    apis: int = 3
    relays: int = 1
    workers: int = 1

    def of(self, role: Role) -> int:
        return {"api": self.apis, "relay": self.relays, "worker": self.workers}[role]

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        given = {name.lower(): environ[name] for name in ("APIS", "RELAYS", "WORKERS") if environ.get(name)}
        try:
            counts = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            raise StartError(f"APIS, RELAYS and WORKERS are counts: {error}") from None
        if min(counts.apis, counts.relays, counts.workers) < 0:
            raise StartError("APIS, RELAYS and WORKERS are counts: none is below 0")
        return counts


class System:
    """Open it with `with`: it is ready then, and on the way out its work in hand is finished."""

    def __init__(
        self,
        database_url: str,
        amqp_url: str,
        folder: Path,
        counts: Counts | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        environ: Mapping[str, str] = os.environ,
        management_url: str | None = None,
        users_url: str | None = None,
        with_nginx: bool = True,
        own_settings: Callable[[str], Mapping[str, str]] = lambda name: {},
        way_to: Callable[[str, int], int] = lambda name, port: port,
        launch: Launch = by_popen,
    ) -> None:
        """Logs and pid files go to `folder`; `settings` win over the environment's.

        The two URLs are an administrator's, with which schema, topology and users are made; each process has a role of
        its own, as far as the administrator may make it. `users_url` is the management interface, to make the users of
        RabbitMQ; with `management_url` the relay also sees to it that the work queue is bound.
        `own_settings` are those of one process, by its name; they win over all. `way_to` is the port by which nginx
        reaches the api of this name that listens on this port: another one, where a wire lies between.
        """
        self.database_url = database_url
        self.amqp_url = amqp_url
        self.folder = folder
        self._counts = counts or Counts()
        self._with_nginx = with_nginx
        self._own_settings = own_settings
        self._way_to = way_to
        self._launch = launch
        self._management_url = management_url
        self._users_url = users_url
        self._has_roles = self._has_users = False
        self._processes: dict[str, Process] = {}
        self._ports = self._earlier_ports()
        self._environ = self._child_environ(environ, settings or {})

    def __enter__(self) -> Self:
        try:
            self.migrate()
            self.scale(self._counts)
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        """Where clients come in: nginx, or the first api where there is none."""
        return self._url("nginx" if self._with_nginx else "api-1")

    @property
    def api_urls(self) -> list[str]:
        return self._urls("api")

    @property
    def relay_urls(self) -> list[str]:
        return self._urls("relay")

    @property
    def worker_urls(self) -> list[str]:
        return self._urls("worker")

    def process(self, name: str) -> Process:
        """By its name: `api-1`, `relay-1`, `worker-1`, `nginx`."""
        return self._processes[name]

    @property
    def processes(self) -> list[Process]:
        return list(self._processes.values())

    def env(self) -> dict[str, str]:
        """Where everything is, by the names of `.run/env`."""
        return {
            "BASE_URL": self.base_url,
            "API_URLS": ",".join(self.api_urls),
            "RELAY_URLS": ",".join(self.relay_urls),
            "WORKER_URLS": ",".join(self.worker_urls),
            **self.urls_of("operator"),
            "ADMIN_DATABASE_URL": self.database_url,
            "ADMIN_AMQP_URL": self.amqp_url,
        }

    def migrate(self) -> None:
        """Bring schema and topology up to date, as the processes demand before they start."""
        upgrade(self.database_url, self._launch)
        declare_topology(self.amqp_url, self._launch)
        self._has_roles = roles.open_database(self.database_url)
        self._has_users = roles.open_vhost(self.amqp_url, self._users_url)

    def urls_of(self, role: str) -> dict[str, str]:
        """The URLs that a role has, by the names of its settings: `api`, `relay`, `worker`, `operator`."""
        name = f"orders_{role}"
        urls = {"DATABASE_URL": roles.url_for(name, self.database_url) if self._has_roles else self.database_url}
        if role == "api":
            return urls
        given = {"AMQP_URL": self.amqp_url}
        if self._management_url and role != "relay":
            given["ORDERS_MANAGEMENT_URL"] = self._management_url
        elif self._management_url and "RELAY_REQUIRED_ROUTES" in self._environ:
            given["RELAY_MANAGEMENT_URL"] = self._management_url
        if self._has_users:
            given = {setting: roles.url_for(name, url, self.amqp_url) for setting, url in given.items()}
        return urls | given

    def change(self, settings: Mapping[str, str] | None = None, environ: Mapping[str, str] = os.environ) -> None:
        """Take other settings; the next `scale` restarts the processes they concern."""
        self._environ = self._child_environ(environ, settings or {})

    def scale(self, counts: Counts) -> list[str]:
        """Have exactly so many of each, all of them running; returns before they are ready.

        Processes whose settings or code have changed are started anew; returns their names.
        """
        self._counts = counts
        wanted = {spec.name: spec for spec in self._specs()}
        ending = [
            process
            for name, process in self._processes.items()
            if name != "nginx" and (name not in wanted or differs(process.spec, wanted[name]))
        ]
        in_parallel(*(process.stop for process in ending))
        for process in ending:
            del self._processes[process.name]
        for name, spec in wanted.items():
            if name not in self._processes:
                self._processes[name] = Process(spec, self.folder, restart=True, launch=self._launch)
            self._processes[name].resume()
            self._processes[name].start()
        if self._with_nginx:
            self._serve()
        write_atomically(self.folder / "ports.json", msgspec.json.encode(self._ports).decode())
        return [process.name for process in ending if process.name in wanted]

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when all are ready; raise StartError with the last line of one that refuses to start."""
        deadline = time.monotonic() + seconds
        waiting = self.processes
        if self._counts.apis == 0:
            waiting = [process for process in waiting if process.name != "nginx"]
        while waiting:
            for process in list(waiting):
                if process.is_ready():
                    process.succeed()
                    waiting.remove(process)
                elif process.refused():
                    raise StartError(f"{process.name}: {process.last_line()}")
            if waiting and time.monotonic() > deadline:
                raise StartError("; ".join(f"{each.name} is not ready: {each.last_line()}" for each in waiting))
            time.sleep(0.05)

    def close(self) -> None:
        """Finish what is in hand: no new requests first, then everybody else at once."""
        front = self._processes.pop("nginx", None)
        if front is not None:
            front.stop()
        in_parallel(*(process.stop for process in self.processes))
        self._processes.clear()

    def _specs(self) -> list[Spec]:
        specs = []
        for role in get_args(Role):
            for number in range(1, self._counts.of(role) + 1):
                name = f"{role}-{number}"
                own = {f"{PREFIXES[role]}_HOST": "127.0.0.1", f"{PREFIXES[role]}_PORT": str(self._port(name))}
                specs.append(
                    Spec(
                        name=name,
                        command=(sys.executable, "-m", MODULES[role]),
                        environ=self.urls_of(role) | self._environ | own | dict(self._own_settings(name)),
                        ready_url=f"{self._url(name)}/health/ready",
                        code=code_of(role, self._environ),
                    )
                )
        return specs

    def _serve(self) -> None:
        """Have nginx know exactly the apis there are."""
        front = self._processes.get("nginx")
        before = self._nginx_files() if front is not None else {}
        apis = [f"api-{number}" for number in range(1, self._counts.apis + 1)]
        api_ports = [self._way_to(name, self._port(name)) for name in apis]
        access_log = self.folder / "nginx-access.log"
        main_file = nginx.render(self.folder / "nginx", self._port("nginx"), api_ports, access_log, self._environ)
        if front is None:
            packages.ensure(["nginx"])
            program = packages.find("nginx")
            assert program is not None
            front = self._processes["nginx"] = Process(
                Spec(
                    name="nginx",
                    command=(program, "-c", str(main_file), "-e", "stderr"),
                    environ=self._environ,
                    stop_signal=nginx.STOP_SIGNAL,
                    ready_url=f"{self.base_url}/health",
                ),
                self.folder,
                restart=True,
            )
        front.resume()
        if front.pid is None:
            front.start()
        elif self._nginx_files() != before:
            front.reload()

    def _nginx_files(self) -> dict[str, str]:
        return {name: (self.folder / "nginx" / name).read_text() for name in nginx.TEMPLATES.values()}

    def _child_environ(self, environ: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
        passed = {
            name: value
            for name, value in environ.items()
            if not name.startswith(NOT_SETTINGS) and name not in ("DATABASE_URL", "AMQP_URL")
        }
        given = DEFAULTS | passed | dict(settings)
        if self._management_url and given["RELAY_REQUIRED_QUEUES"] == DEFAULTS["RELAY_REQUIRED_QUEUES"]:
            return {"RELAY_REQUIRED_ROUTES": REQUIRED_ROUTES} | given
        return given

    def _port(self, name: str) -> int:
        if name not in self._ports:
            self._ports[name] = free_port()
        return self._ports[name]

    def _earlier_ports(self) -> dict[str, int]:
        """Those of a run in this folder that was killed: its clients find the next one where they left it."""
        try:
            kept = msgspec.json.decode((self.folder / "ports.json").read_bytes(), type=dict[str, int])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}
        return {name: port for name, port in kept.items() if is_free(port)}

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._port(name)}"

    def _urls(self, role: Role) -> list[str]:
        return [self._url(f"{role}-{number}") for number in range(1, self._counts.of(role) + 1)]


def differs(old: Spec, new: Spec) -> bool:
    """One of its settings or its code has changed; the rest of a shell's environment changes with every call."""
    role = next(role for role in get_args(Role) if new.name.startswith(role))

    def settings(spec: Spec) -> dict[str, str]:
        return {name: value for name, value in spec.environ.items() if name.startswith(SETTINGS[role])}

    return old.code != new.code or settings(old) != settings(new)


def code_of(role: Role, environ: Mapping[str, str]) -> str:
    """Tell one state of a process's sources on disk from another; those of a worker's handler are among them."""
    files = [*(ROOT / CODE[role]).rglob("*.py")]
    if role == "worker" and (handler := environ.get("ORDERS_HANDLER")):
        top = ROOT / handler.partition(":")[0].partition(".")[0]
        files += [top.with_suffix(".py"), *top.rglob("*.py")]
    known = hashlib.sha256()
    for file in sorted(files):
        with suppress(FileNotFoundError):
            known.update(f"{file} {file.stat().st_mtime_ns}\n".encode())
    return known.hexdigest()


def upgrade(database_url: str, launch: Launch = by_popen) -> None:
    """`alembic upgrade head` on this database."""
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    run_step("alembic upgrade head", command, launch, DATABASE_URL=database_url)


def declare_topology(amqp_url: str, launch: Launch = by_popen) -> None:
    """`orders topology` on this broker."""
    command = [str(Path(sys.executable).with_name("orders")), "topology"]
    run_step("orders topology", command, launch, AMQP_URL=amqp_url)


def run_step(title: str, command: list[str], launch: Launch, **settings: str) -> None:
    with tempfile.TemporaryFile() as output:
        running = launch(
            command, cwd=ROOT, env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        code = running.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    if code != 0:
        raise StartError(f"{title}: {lines[-1] if lines else f'exited with {code}'}")
