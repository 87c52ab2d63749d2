"""A private PostgreSQL as a child process, with the durability of a real one."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

import msgspec
import psycopg

from dev.sandbox import packages
from dev.sandbox.ports import free_port
from dev.sandbox.process import Process, Spec, StartError, run_as, wait_until

START_SECONDS = 30.0
USER = "orders"
DATABASE = "orders"

# synchronous_commit and full_page_writes stay as they are, and so does fsync, unless the owner says that nobody harms
# this server: a test that kills it means it.
ROOM = {"max_connections": "200"}
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    **ROOM,
    "shared_buffers": "128MB",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] %q%d ",
    "timezone": "UTC",
}
# A checkpoint for each database that is made and dropped would cost more than the tests in it.
WITHOUT_FLUSHES = {
    "fsync": "off",
    "max_wal_size": "4GB",
    "max_connections": "500",
    "max_prepared_transactions": "10",
}


class Identity(msgspec.Struct, frozen=True):
    """What stays the same over restarts, and is kept beside the data."""

    port: int
    password: str


class LocalPostgres:
    """Started on a port and a data folder of its own, which it finds again however it ended."""

    name = "postgres"

    def __init__(
        self, folder: Path, logs: Path | None, *, restart: bool, throwaway: bool, flushes: bool = True
    ) -> None:
        packages.ensure(["postgres"])
        program = packages.find("postgres")
        assert program is not None
        self._programs = Path(program).resolve().parent
        self._user = run_as("postgres")
        self._folder = folder / "postgres"
        self._data = self._folder / "data"
        self._identity = self._prepare(self._folder / "identity.json")
        settings = SETTINGS | ({} if flushes else WITHOUT_FLUSHES) | {"port": str(self._identity.port)}
        self.process = Process(
            Spec(
                name=self.name,
                command=(
                    str(self._programs / "postgres"),
                    "-D",
                    str(self._data),
                    *(f"--{name}={value}" for name, value in settings.items()),
                ),
                # No PG* settings of the caller's: they would reach the server's own connections.
                environ={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
                user=self._user,
                stop_signal=signal.SIGINT,
                # Immediate, but it still removes its shared memory; SIGKILL would leave that behind.
                last_signal=signal.SIGQUIT,
                remove=(str(self._folder),) if throwaway else (),
            ),
            logs or self._folder,
            restart=restart,
        )

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{self._identity.password}@127.0.0.1:{self._identity.port}/{DATABASE}"

    def start(self) -> None:
        """On the same port and data as before; returns when it takes connections."""
        self.process.start()
        wait_until(self._is_ready, START_SECONDS, lambda: f"postgres: {self.process.last_line()}")

    def stop(self) -> None:
        """The fast shutdown of PostgreSQL: sessions are ended, a checkpoint is written."""
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def pause(self) -> None:
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def standby(self, folder: Path) -> "LocalPostgres":
        """Copy the running server to a folder of the copy's own; started, it is a hot standby that streams from it."""
        copy = folder / "postgres"
        copy.mkdir(mode=0o700)
        if self._user is not None:
            shutil.chown(copy, self._user)
        source = self.url.removesuffix(DATABASE) + "postgres"
        self._run("pg_basebackup", f"--dbname={source}", f"--pgdata={copy / 'data'}", "--write-recovery-conf",
                  "--checkpoint=fast", "--no-sync", cwd=copy)  # fmt: skip
        identity = Identity(port=free_port(), password=self._identity.password)
        (copy / "identity.json").write_bytes(msgspec.json.encode(identity))
        return LocalPostgres(folder, None, restart=False, throwaway=True, flushes=False)

    def _is_ready(self) -> bool:
        if self.process.refused():
            raise StartError(f"postgres: {self.process.last_line()}")
        if self.process.pid is None:
            return False
        maintenance = self.url.removesuffix(DATABASE) + "postgres"
        try:
            with psycopg.connect(maintenance, connect_timeout=2, autocommit=True) as conn:
                found = conn.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if found is None:
                    conn.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.OperationalError:
            return False
        self.process.succeed()
        return True

    def _prepare(self, kept: Path) -> Identity:
        """Make the data folder, unless an earlier run of the same owner left one."""
        if kept.exists() and (self._data / "PG_VERSION").exists():
            return msgspec.json.decode(kept.read_bytes(), type=Identity)
        identity = Identity(port=free_port(), password=secrets.token_hex(16))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)
        password = self._folder / "password"
        password.write_text(identity.password)
        if self._user is not None:
            shutil.chown(self._folder, self._user)
            shutil.chown(password, self._user)
        try:
            self._run(
                "initdb",
                f"--pgdata={self._data}",
                f"--username={USER}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                # Of the empty database only; whatever is written later is flushed.
                "--no-sync",
                cwd=self._folder,
            )
        finally:
            password.unlink(missing_ok=True)
        kept.write_bytes(msgspec.json.encode(identity))
        kept.chmod(0o600)
        return identity

    def _run(self, program: str, *arguments: str, cwd: Path) -> None:
        """Run one of PostgreSQL's own programs as its user."""
        done = subprocess.run(
            [self._programs / program, *arguments],
            user=self._user,
            group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            extra_groups=None if self._user is None else [],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise StartError(f"{program}: {done.stdout.strip().splitlines()[-1]}")
