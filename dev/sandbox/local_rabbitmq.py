"""A private RabbitMQ as a child process, with an epmd, a node name and folders of its own.

Several run side by side: what Erlang shares by default (epmd's port, the cookie in the home folder, the ports of
distribution) is each server's own here, and bound to 127.0.0.1.
"""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

import msgspec

from dev.sandbox import packages
from dev.sandbox.ports import free_port
from dev.sandbox.process import Process, Spec, StartError, run_as, wait_until
from dev.sandbox.vhosts import Management

START_SECONDS = 90.0
CONTROL_SECONDS = 60.0
USER = "orders"
VHOST = "orders"


class ControlError(Exception):
    """rabbitmqctl refused a command."""


class Identity(msgspec.Struct, frozen=True):
    """What stays the same over restarts, and is kept beside the data."""

    port: int
    management_port: int
    distribution_port: int
    epmd_port: int
    password: str


class LocalRabbitMQ:
    """Started on ports and a data folder of its own, which it finds again however it ended."""

    name = "rabbitmq"

    def __init__(self, folder: Path, logs: Path | None, *, restart: bool, throwaway: bool) -> None:
        packages.ensure(["rabbitmq-server"])
        program = packages.find("rabbitmq-server")
        epmd = shutil.which("epmd")
        if program is None or epmd is None:
            raise packages.MissingProgramError("epmd not found beside rabbitmq-server; on Debian it is in erlang-base")
        self._user = user = run_as("rabbitmq")
        # Debian's own command would change the user, and so lose the cookie of this broker.
        self._control = str(Path(program).with_name("rabbitmqctl"))
        self._folder = folder / "rabbitmq"
        self._identity = self._prepare(self._folder / "identity.json", user)
        environ = {
            "PATH": os.environ.get("PATH", ""),
            "LANG": "C.UTF-8",
            "HOME": str(self._folder),
            "ERL_EPMD_PORT": str(self._identity.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": f"orders-{self._identity.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._identity.distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "none.conf"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._folder / "none.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            # Its script then becomes the server instead of waiting beside it, so that the pid is the server's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        # In the foreground and ours: one that Erlang starts by itself is a daemon that belongs to nobody.
        self._epmd = Process(
            Spec(
                name="epmd",
                command=(epmd, "-address", "127.0.0.1", "-port", str(self._identity.epmd_port)),
                environ={"PATH": environ["PATH"]},
                user=user,
            ),
            logs or self._folder,
            restart=True,
        )
        self.process = Process(
            Spec(
                name=self.name,
                command=(program,),
                environ=environ,
                user=user,
                remove=(str(self._folder),) if throwaway else (),
            ),
            logs or self._folder,
            restart=restart,
        )

    @property
    def url(self) -> str:
        return f"amqp://{USER}:{self._identity.password}@127.0.0.1:{self._identity.port}/{VHOST}"

    @property
    def management_url(self) -> str:
        return f"http://{USER}:{self._identity.password}@127.0.0.1:{self._identity.management_port}"

    def start(self) -> None:
        """On the same ports and data as before; returns when it takes connections."""
        self._epmd.start()
        self.process.start()
        wait_until(self._is_ready, START_SECONDS, lambda: f"rabbitmq: {self.process.last_line()}")

    def stop(self) -> None:
        self.process.stop()

    def control(self, *command: str) -> None:
        """`rabbitmqctl`, as for an alarm: `control("set_vm_memory_high_watermark", "0.00001")`."""
        done = subprocess.run(
            [self._control, *command],
            env=dict(self.process.spec.environ),
            user=self._user,
            group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            extra_groups=None if self._user is None else [],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=CONTROL_SECONDS,
        )
        if done.returncode != 0:
            raise ControlError(f"rabbitmqctl {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")

    def close(self) -> None:
        """End it and its epmd for good; a clean stop would cost 6 s, and nobody reads this data again."""
        self.process.stop(0)
        self._epmd.stop()

    def kill(self) -> None:
        self.process.kill()

    def pause(self) -> None:
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def _is_ready(self) -> bool:
        if self.process.refused():
            raise StartError(f"rabbitmq: {self.process.last_line()}")
        if self.process.pid is None or not speaks_amqp(self._identity.port):
            return False
        if not Management(self.management_url).answers():
            return False
        self.process.succeed()
        return True

    def _prepare(self, kept: Path, user: str | None) -> Identity:
        """Write its configuration, unless an earlier run of the same owner left one."""
        if kept.exists():
            return msgspec.json.decode(kept.read_bytes(), type=Identity)
        identity = Identity(
            port=free_port(),
            management_port=free_port(),
            distribution_port=free_port(),
            epmd_port=free_port(),
            password=secrets.token_hex(16),
        )
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)
        (self._folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{identity.port}\n"
            f"management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {identity.management_port}\n"
            f"default_user = {USER}\n"
            f"default_pass = {identity.password}\n"
            f"default_vhost = {VHOST}\n"
            f"log.console = true\n"
            f"log.console.level = info\n"
        )
        if user is not None:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, user)
        kept.write_bytes(msgspec.json.encode(identity))
        kept.chmod(0o600)
        return identity


def speaks_amqp(port: int) -> bool:
    """It answers the AMQP greeting; the port alone may be open before the broker is."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as wire:
            wire.sendall(b"AMQP\x00\x00\x09\x01")
            # A method frame on channel 0: Connection.Start.
            return wire.recv(3) == b"\x01\x00\x00"
    except OSError:
        return False
