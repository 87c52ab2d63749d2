"""Connections to PostgreSQL whose calls all end in time, whatever the server does."""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import ConnDict
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper

from orders.database import session_probe
from orders.database.severing import close, deadline, purposes, sever
from orders.model.errors import StartupError
from orders.runtime.process import WAIT_SECONDS
from orders.runtime.retry_pauses import backoff
from orders.runtime.timeouts import CONNECT_SECONDS, HEAD_START_SECONDS

__all__ = [
    "close",
    "connect",
    "deadline",
    "require",
    "require_database",
    "sever",
]  # every operation on a connection is here

PROBE_SECONDS = 5.0

# Every session sets these, whatever the server's defaults are.
_SESSION = {
    "synchronous_commit": "on",  # a 2xx means flushed
    # A stopped or unreachable client keeps its connection, and with it its locks, until these take them away.
    "idle_in_transaction_session_timeout": "1500",
    "tcp_user_timeout": "1500",
    "statement_timeout": "10000",  # the backstop; our own deadlines are shorter
    "client_connection_check_interval": "500",  # a statement whose connection was severed ends, unless it commits
    "lock_timeout": "5000",
    "default_transaction_isolation": "read committed",  # whatever the database's own default is
    # Every value is written and read in these forms.
    "timezone": "UTC",
    "datestyle": "ISO, YMD",  # no server's default: a session that reports it has all of these
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    # Our statements are short; compiling one can take seconds, and a plan that is only discouraged looks costly enough.
    "jit": "off",
    "client_min_messages": "warning",
}


async def connect(url: str, name: str, **session: str) -> AsyncConnection:
    """Open an autocommit connection to the first server of `url` that takes writes.

    `url` is a libpq URL, which may name several hosts. `name` becomes the application_name. `session` adds to or
    overrides the PostgreSQL settings of the session. A silent server delays the next one by HEAD_START_SECONDS only.
    Raises psycopg.OperationalError within CONNECT_SECONDS, also if the server accepts TCP and never answers; and after
    a look at the server while too many severed connections of that name are still at work there.
    """
    purpose = purposes[name]
    purpose.refuse_at_the_bound()
    end = time.monotonic() + CONNECT_SECONDS
    settings = _SESSION | session
    conn = await _open(url, name, settings)
    await purpose.admit(conn)
    if _status(conn, "DateStyle") != "ISO, YMD" or _status(conn, "TimeZone") != "UTC":
        # A pooler has dropped the options; or libpq has sent PGDATESTYLE and PGTZ after them.
        values = ((key, value.replace("'", "''")) for key, value in settings.items())
        try:
            with deadline(conn, max(0.0, end - time.monotonic())):
                await conn.execute("; ".join(f"SET {key} = '{value}'" for key, value in values).encode())
        except BaseException:
            await close(conn)
            raise
    # One type for every integer: else a list's type follows its largest value, and each type is another prepared plan.
    conn.adapters.register_dumper(int, Int8BinaryDumper)
    conn.adapters.register_dumper(int, Int8Dumper)
    return conn


async def _open(url: str, name: str, settings: Mapping[str, str]) -> AsyncConnection:
    """Open a connection as `connect` does; a pooler may drop the settings."""
    given = conninfo_to_dict(url)
    options = [str(given.get("options") or ""), *(f"-c {key}={_escaped(value)}" for key, value in settings.items())]
    ours: ConnDict = {
        "application_name": name,
        "client_encoding": "UTF8",  # of all text in our statements, whatever the environment or the role would have
        "options": " ".join(options).strip(),
        "target_session_attrs": "read-write",
        "connect_timeout": "60",  # never reached: the deadline is ours, and below the least that psycopg takes
        "keepalives_idle": "5",
        "keepalives_interval": "1",
        "keepalives_count": "3",
    }
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await _first(await _servers(given | ours))
    except TimeoutError:
        raise psycopg.OperationalError("the server does not answer") from None


def _escaped(value: str) -> str:
    """Return a value as it stands in libpq's `options`, where spaces separate."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _status(conn: AsyncConnection, name: str) -> str:
    """Return a setting that the server reported when the session began; it costs no statement."""
    return conn.info.parameter_status(name) or ""


async def _servers(given: ConnDict) -> list[str]:
    """Make a conninfo for each address of each server, in the order of the URL.

    psycopg does this too, but gives each address at least two seconds, one after another.
    """
    hosts = str(given.get("host") or "").split(",")
    ports = str(given.get("port") or "5432").split(",")
    if given.get("hostaddr") or not all(hosts) or any(host.startswith("/") for host in hosts):
        return [make_conninfo("", **given)]  # addresses or sockets, which need no look-up
    if len(ports) not in {1, len(hosts)}:
        raise psycopg.OperationalError(f"{len(ports)} ports for {len(hosts)} hosts")
    servers: list[str] = []
    reason = ""
    for host, port in zip(hosts, ports * (len(hosts) // len(ports)), strict=True):
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            reason = f"failed to resolve host {host!r}: {error}"
        else:
            servers += [
                make_conninfo("", **{**given, "host": host, "port": port, "hostaddr": str(entry[4][0])})
                for entry in found
            ]
    if not servers:
        raise psycopg.OperationalError(reason)
    return servers


async def _first(servers: Sequence[str]) -> AsyncConnection:
    """Return the connection that is open first; each server has a head start over the next one."""
    waiting = deque(servers)
    attempts: list[asyncio.Task[AsyncConnection]] = []
    pending: set[asyncio.Task[AsyncConnection]] = set()
    reasons: list[str] = []
    first: AsyncConnection | None = None
    try:
        while waiting or pending:
            if waiting:
                attempt = AsyncConnection.connect(waiting.popleft(), autocommit=True)
                attempts.append(asyncio.create_task(attempt, name=f"connect-{len(attempts)}"))
                pending.add(attempts[-1])
            done, pending = await asyncio.wait(
                pending, timeout=HEAD_START_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                try:
                    first = task.result()
                except psycopg.Error as error:
                    reasons.append(str(error))
                else:
                    return first
        raise psycopg.OperationalError("; ".join(reasons))
    finally:
        for task in attempts:
            task.cancel()
        for found in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(found, AsyncConnection) and found is not first:
                await close(found)  # it came too late


def require_utf8(conn: AsyncConnection) -> None:
    """Raise StartupError if the database cannot hold every text: its encoding is another than UTF8."""
    encoding = _status(conn, "server_encoding")
    if encoding != "UTF8":
        raise StartupError(
            f"the encoding of this database is {encoding}, and orders need UTF8: "
            "make it with `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0`"
        )


async def require(conn: AsyncConnection, *statements: str) -> None:
    """Run statements that lean on each column we use; raise StartupError if the schema lacks one."""
    for statement in statements:
        try:
            with deadline(conn, 5):
                await conn.execute(statement)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            raise StartupError(
                f"the database is not migrated ({error.diag.message_primary}): run `alembic upgrade head`"
            ) from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise StartupError(
                f"the database refuses this user ({error.diag.message_primary}): grant it, see docs/deployment.md"
            ) from None


async def require_database(url: str, *statements: LiteralString) -> None:
    """Wait for PostgreSQL, then check that it gives us sessions of our own, and has every column we lean on.

    Raises StartupError if not.
    """
    end = time.monotonic() + WAIT_SECONDS
    for pause in backoff():
        try:
            await _check(url, statements)
        except psycopg.OperationalError as error:
            if refusal := session_probe.words_of_refusal(error):
                raise StartupError(refusal) from None
            if time.monotonic() > end:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise StartupError(
                    f"no connection to PostgreSQL in {WAIT_SECONDS:.0f} s ({reason}): is it running, and is "
                    "DATABASE_URL right?"
                ) from None
        else:
            return
        await asyncio.sleep(pause)


async def _check(url: str, statements: Sequence[LiteralString]) -> None:
    opened: list[AsyncConnection] = []
    try:
        # Without the SETs of `connect`: in a session that a pooler lends, other programs would meet them.
        opened.append(await _open(session_probe.marked(url), "orders-startup", _SESSION))
        opened.append(await _open(session_probe.beside(url, opened[0]), "orders-startup", _SESSION))
        with deadline(opened[0], PROBE_SECONDS), deadline(opened[1], PROBE_SECONDS):
            fault = await session_probe.fault_of_session(url, *opened)
        if fault:
            raise StartupError(fault)
        require_utf8(opened[0])
        await require(opened[0], *statements)
    finally:
        for conn in opened:
            await close(conn)
