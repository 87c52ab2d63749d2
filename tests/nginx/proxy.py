"""A real nginx on the rules of deploy/nginx, for as long as a test needs it."""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dev.sandbox import nginx, packages, ports
from dev.sandbox.process import Process, Spec


class Answer:
    """What came back over a raw connection, until nginx closed it."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1]) if len(lines[0].split(" ")) > 1 else 0
        self.headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]

    def all(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header == name.lower()]

    def problem(self) -> dict[str, Any]:
        """The body as a problem of RFC 9457, its form checked."""
        assert self.all("Content-Type") == ["application/problem+json"], (self.status, self.headers, self.body)
        problem: dict[str, Any] = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem["type"] == "about:blank"
        assert problem["title"] not in ("", "Error")
        assert problem["detail"]
        assert self.all("X-Request-ID") == [problem["request_id"]]
        return problem


class Proxy:
    """A running nginx: its port, a way to talk to it, and what it wrote down."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.folder = folder

    async def ask(self, method: str, target: str, headers: Iterable[str] = (), body: bytes = b"") -> Answer:
        """One well-formed request on a connection of its own."""
        length = [f"Content-Length: {len(body)}"] if body or method == "POST" else []
        lines = [f"{method} {target} HTTP/1.1", "Host: shop.example:8080", "Connection: close", *length, *headers]
        return await self.say("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    async def say(self, raw: bytes) -> Answer:
        """Any bytes at all."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(raw)
            async with asyncio.timeout(30):
                return Answer(await reader.read())
        except ConnectionResetError:
            return Answer(b"")  # how nginx cuts a client off that was too slow
        finally:
            writer.close()

    async def log(self, count: int) -> list[dict[str, Any]]:
        """The access log, once it holds that many lines."""
        path = self.folder / "access.log"
        await eventually(lambda: path.read_text().count("\n") >= count)
        return [json.loads(line) for line in path.read_text().splitlines()]


async def eventually(fact: Callable[[], bool], seconds: float = 10) -> None:
    """Return when the fact holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


def hurried(text: str, times: int) -> str:
    """The same rules with every timeout so many times shorter, so that a test can wait for it."""
    return re.sub(r"(?m)^(\s*\w+_timeout) (\d+)s;", lambda hit: f"{hit[1]} {int(hit[2]) * 1000 // times}ms;", text)


@asynccontextmanager
async def on_the_host(
    folder: Path, apis: list[int], *, times: int = 1, rate_limit: int | None = None, extra: str = ""
) -> AsyncIterator[Proxy]:
    """nginx.conf as the sandbox fills it in; `extra` goes to the end of the server block."""
    port = ports.free_port()
    settings = {"ORDERS_RATE_LIMIT": str(rate_limit)} if rate_limit is not None else {}
    main_file = nginx.render(folder, port, apis, folder / "access.log", settings)
    main_file.write_text(main_file.read_text().replace(str(nginx.RULES), str(folder)))
    copy_rules(folder, times, extra)
    async with _running(port, folder):
        yield Proxy(port, folder)


@asynccontextmanager
async def in_a_container(folder: Path, *, dns: int, api_port: int) -> AsyncIterator[Proxy]:
    """compose.conf with the container's folders, name server and ports replaced by ours, and nothing else."""
    port = ports.free_port()
    text = (nginx.RULES / "compose.conf").read_text()
    for theirs, ours in (
        ("/tmp/", f"{folder}/"),
        ("/etc/nginx/conf.d/*.conf", str(folder / "rate-limit.conf")),
        ("/etc/nginx/", f"{folder}/"),
        ("/dev/stdout", str(folder / "access.log")),
        ("/dev/stderr", "stderr"),
        ("127.0.0.11 ", f"127.0.0.1:{dns} "),
        ("default api:8000;", f"default api:{api_port};"),
        ("listen 8080 ", f"listen 127.0.0.1:{port} "),
    ):
        assert theirs in text
        text = text.replace(theirs, ours)
    nginx.render(folder, port, [], folder / "access.log", {})  # for rate-limit.conf
    (folder / "nginx.conf").write_text(f"daemon off;\n{text}")
    copy_rules(folder)
    async with _running(port, folder):
        yield Proxy(port, folder)


def copy_rules(folder: Path, times: int = 1, extra: str = "") -> None:
    (folder / "orders.conf").write_text(hurried((nginx.RULES / "orders.conf").read_text(), times))
    (folder / "locations.conf").write_text(hurried((nginx.RULES / "locations.conf").read_text(), times) + extra)


@asynccontextmanager
async def _running(port: int, folder: Path) -> AsyncIterator[None]:
    packages.ensure(["nginx"])
    program = packages.find("nginx")
    assert program is not None
    command = (program, "-c", str(folder / "nginx.conf"), "-e", "stderr")
    # Not to be outlived by it, even when pytest is killed; SIGTERM, because a test has nothing in hand at its end.
    process = Process(Spec(name="nginx", command=command, environ=os.environ), folder, restart=False)
    await asyncio.to_thread(process.start)

    def listens() -> bool:
        assert process.pid is not None, process.log.read_text()
        return not ports.is_free(port)

    try:
        await eventually(listens)
        yield
    finally:
        await asyncio.to_thread(process.stop)


async def concurrently(*asked: Awaitable[Answer]) -> list[Answer]:
    return list(await asyncio.gather(*asked))
