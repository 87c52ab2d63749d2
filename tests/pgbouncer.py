"""A PgBouncer in front of a test's database."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from dev.sandbox import packages, ports
from dev.sandbox.process import Process, Spec
from tests.eventually import eventually


@asynccontextmanager
async def pgbouncer(database_url: str, folder: Path, **settings: object) -> AsyncIterator[str]:
    """Start it with these settings; the URL leads to the same database by way of it."""
    packages.ensure(["pgbouncer"])
    program = packages.find("pgbouncer")
    assert program is not None
    there, port = urlsplit(database_url), ports.free_port()
    target = {
        "host": there.hostname, "port": there.port, "user": unquote(there.username or ""),
        "password": unquote(there.password or ""),
    }  # fmt: skip
    given = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any", **settings}
    config = folder / f"pgbouncer-{port}.ini"
    lines = [
        "[databases]", "* = " + " ".join(f"{name}={value}" for name, value in target.items() if value),
        "[pgbouncer]", *(f"{name} = {value}" for name, value in given.items()),
    ]  # fmt: skip
    config.write_text("\n".join(lines))
    # Root it refuses to run as; it reads its file before it becomes another.
    user = ("-u", "nobody") if os.geteuid() == 0 else ()
    spec = Spec(name=f"pgbouncer-{port}", command=(program, *user, str(config)), environ=os.environ)
    process = Process(spec, folder, restart=False)
    await asyncio.to_thread(process.start)

    def listens() -> bool:
        assert process.pid is not None, process.log.read_text()
        return not ports.is_free(port)

    try:
        await eventually(listens)
        yield urlunsplit(there._replace(netloc=f"{there.netloc.rpartition('@')[0]}@127.0.0.1:{port}"))
    finally:
        await asyncio.to_thread(process.kill)
