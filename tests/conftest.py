"""Servers once per session, a database and a vhost per test, and the whole system where a journey wants it."""

import inspect
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import AsyncConnection

import dev.sandbox.servers
from dev.sandbox.choice import Choice, ChoiceError, choose
from dev.sandbox.servers import Servers, in_parallel
from dev.sandbox.system import Counts, System, declare_topology, upgrade
from tests import places

StartSystem = Callable[..., System]

CHOICE = pytest.StashKey[Choice]()
SYSTEMS = pytest.StashKey[list[System]]()
LOG_TAIL_BYTES = 3_000


def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[CHOICE] = choose(os.environ)
    except ChoiceError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header(config: pytest.Config) -> str:
    return str(config.stash[CHOICE])


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> None:
    """Every async test runs on anyio's plugin, unmarked."""
    if inspect.iscoroutinefunction(obj) and name.startswith("test"):
        pytest.mark.anyio(obj)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A journey that fails shows what its processes wrote last."""
    report = yield
    if report.failed:
        for system in item.stash.get(SYSTEMS, []):
            for log in sorted(system.folder.glob("*.log")):
                tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
                if tail:
                    report.sections.append((f"{system.folder.name}/{log.name}", tail))
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The one event loop that the product runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[Servers]:
    """PostgreSQL and RabbitMQ for all tests that do not break them."""
    with dev.sandbox.servers.servers(pytestconfig.stash[CHOICE], testcontainers=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def template(servers: Servers) -> Iterator[str]:
    """The name of a migrated database, which nobody connects to: each test gets a copy."""
    with places.database(servers) as url:
        upgrade(url)
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
def database_url(servers: Servers, template: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    with places.database(servers, template) as url:
        yield url


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[AsyncConnection]:
    """An open connection to this test's database; autocommit, as the product's are."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def amqp_url(servers: Servers) -> Iterator[str]:
    """A vhost of this test's own, with nothing in it."""
    with places.vhost(servers) as url:
        yield url


@pytest.fixture
def topology(amqp_url: str) -> str:
    """This test's vhost, with what `orders topology` declares in it."""
    declare_topology(amqp_url)
    return amqp_url


@pytest.fixture
def start_system(
    request: pytest.FixtureRequest, servers: Servers, template: str, tmp_path: Path
) -> Iterator[StartSystem]:
    """Start systems with a database and a vhost of their own each, on the servers of all."""
    with starting(request, servers, template, tmp_path) as start:
        yield start


@pytest.fixture
def system(start_system: StartSystem) -> System:
    """nginx, three apis, a relay, a worker."""
    return start_system()


@pytest.fixture(scope="session")
def breakable_servers(pytestconfig: pytest.Config) -> Iterator[Servers]:
    """A second pair of servers, for the tests that stop them; never the environment's, which are not ours to stop."""
    choice = pytestconfig.stash[CHOICE]
    if choice.kind == "env":
        choice = Choice("local", "the environment's servers are not ours to stop")
    with dev.sandbox.servers.servers(choice, testcontainers=True) as opened:
        yield opened


@pytest.fixture
def own_servers(breakable_servers: Servers) -> Iterator[Servers]:
    """Servers that nobody else uses meanwhile: stop, kill and pause them; they are mended afterwards."""
    try:
        yield breakable_servers
    finally:
        mend(breakable_servers)


def mend(servers: Servers) -> None:
    """Whatever a test did to them, they take connections again."""
    for server in (servers.postgres, servers.rabbitmq):
        server.resume()
    in_parallel(servers.postgres.start, servers.rabbitmq.start)


@pytest.fixture
def start_own_system(request: pytest.FixtureRequest, own_servers: Servers, tmp_path: Path) -> Iterator[StartSystem]:
    """Start systems on servers that the test may break."""
    with starting(request, own_servers, None, tmp_path) as start:
        try:
            yield start
        finally:
            # A test that failed while they were down: its database and vhost could not be removed.
            mend(own_servers)


@contextmanager
def starting(
    request: pytest.FixtureRequest, servers: Servers, template: str | None, folder: Path
) -> Iterator[StartSystem]:
    """While it is open, each call starts one more system; they are closed in reverse."""
    systems = request.node.stash.setdefault(SYSTEMS, [])

    with ExitStack() as stack:

        def start(
            *,
            apis: int = 3,
            relays: int = 1,
            workers: int = 1,
            settings: Mapping[str, str] | None = None,
            with_nginx: bool = True,
        ) -> System:
            own = folder / f"system-{len(systems) + 1}"
            own.mkdir()
            system = System(
                stack.enter_context(places.database(servers, template)),
                stack.enter_context(places.vhost(servers)),
                own,
                Counts(apis=apis, relays=relays, workers=workers),
                settings=settings,
                with_nginx=with_nginx,
            )
            systems.append(system)
            return stack.enter_context(system)

        yield start
