"""Servers once per session, a database and a vhost per test, and the whole system where a journey wants it."""

import inspect
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import AsyncConnection

import dev.sandbox.servers
from dev.sandbox.choice import Choice, ChoiceError, choose
from dev.sandbox.process import Launch
from dev.sandbox.servers import Servers, in_parallel
from dev.sandbox.system import Counts, System
from tests import places, warm
from tests.lending import Borrower, Lender, Loan

StartSystem = Callable[..., System]

CHOICE = pytest.StashKey[Choice]()
LENDER = pytest.StashKey[Lender | Borrower]()
LENDING = pytest.StashKey[Path]()
SYSTEMS = pytest.StashKey[list[System]]()
LOG_TAIL_BYTES = 3_000
SERVERS = "servers"
# Whoever uses one of these needs PostgreSQL, RabbitMQ or nginx.
SERVER_FIXTURES = {"loan", "breakable_servers", "nginx", "compose"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{SERVERS}: needs a server (set by the fixtures that a test uses)")
    config.addinivalue_line("markers", "long: takes more than ten seconds, so it starts among the first")
    if is_worker(config):
        given = config.workerinput  # type: ignore[attr-defined]
        if given["choice"]:
            config.stash[CHOICE] = msgspec.json.decode(given["choice"], type=Choice)
        os.environ["SANDBOX_PORTS"] = given["ports"]
        config.stash[LENDER] = Borrower(given["lending"])
    else:
        if not without_servers(config):
            try:
                config.stash[CHOICE] = choose(os.environ)
            except ChoiceError as error:
                raise pytest.UsageError(str(error)) from None
        config.stash[LENDER] = Lender(config.stash.get(CHOICE, None))
    warm.find_parents_by(config.stash[LENDER].parent)


def pytest_unconfigure(config: pytest.Config) -> None:
    places.forget()
    if LENDER in config.stash:
        config.stash[LENDER].close()
        places.forget()


def is_worker(config: pytest.Config) -> bool:
    """One of several processes that pytest-xdist has shared the tests out to."""
    return hasattr(config, "workerinput")


def pytest_report_header(config: pytest.Config) -> str | None:
    return str(config.stash[CHOICE]) if CHOICE in config.stash else None


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: none for a test that is asked for by name; else two for each processor, since half of them wait.

    Tests without servers do not wait.
    """
    if any("::" in str(argument) for argument in config.args):
        return 0
    return len(os.sched_getaffinity(0)) * (1 if without_servers(config) else 2)


def without_servers(config: pytest.Config) -> bool:
    """`make test-fast`: no server is chosen, let alone started."""
    return str(config.option.markexpr) == f"not {SERVERS}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker which servers were chosen, who lends them, and which ports are its own."""
    config: pytest.Config = node.config
    if LENDING not in config.stash:
        lender = config.stash[LENDER]
        assert isinstance(lender, Lender)
        config.stash[LENDING] = lender.serve()
    choice = config.stash.get(CHOICE, None)
    number = int(node.gateway.id.removeprefix("gw")) + 1
    node.workerinput["choice"] = "" if choice is None else msgspec.json.encode(choice).decode()
    node.workerinput["lending"] = str(config.stash[LENDING])
    node.workerinput["ports"] = f"{number}/{max(len(node.nodemanager.specs), number)}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Share out whole groups, whatever `--dist` says."""
    from tests.grouping import Groups  # only where there are several processes

    return Groups(config, log, groups_file(config.stash[LENDING]))


def groups_file(lending: Path) -> Path:
    """Where a worker writes which tests stay together, for the controller."""
    return lending.with_name("groups")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs servers by the fixtures it uses, keep together what shares something, the longest first."""
    for item in items:
        assert isinstance(item, pytest.Function)
        used = set(item.fixturenames)
        if used & SERVER_FIXTURES:
            item.add_marker(SERVERS)
        if "breakable_servers" in used:
            # One pair of servers for all of the folder's: starting one takes longer than most of these tests.
            item.add_marker(pytest.mark.xdist_group(f"breaks servers: {item.path.parent.name}"))
        elif not used & SERVER_FIXTURES or shares_by_module(item):
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(item.config.rootpath))))
    if items and is_worker(items[0].config):
        items.sort(key=rank)
        given = items[0].config.workerinput  # type: ignore[attr-defined]
        if given["workerid"] == "gw0":  # the others find the same
            from tests.grouping import tell

            tell(items, groups_file(Path(given["lending"])))


def rank(item: pytest.Item) -> int:
    """Where in the order of the run: a test that takes long must not be the last to start."""
    assert isinstance(item, pytest.Function)
    used = set(item.fixturenames)
    return min(
        0 if "breakable_servers" in used else 4,
        1 if item.get_closest_marker("long") else 4,
        2 if "start_system" in used else 4,
        3 if used & SERVER_FIXTURES else 4,
    )


def shares_by_module(item: pytest.Function) -> bool:
    """One of its fixtures is made once for its module."""
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return any(each[-1].scope == "module" for each in definitions)


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
def loan(pytestconfig: pytest.Config) -> Loan:
    """Where the servers of all workers are."""
    return pytestconfig.stash[LENDER].lend()


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config, loan: Loan) -> Servers:
    """PostgreSQL and RabbitMQ for all tests, of all workers, that do not break them."""
    return loan.servers(pytestconfig.stash[CHOICE])


@pytest.fixture(scope="session")
def template(loan: Loan) -> str:
    """The name of a migrated database, which nobody connects to: each test gets a copy."""
    return loan.template


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
    warm.declare_topology(amqp_url)
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
            launch: Launch = warm.launch,
        ) -> System:
            own = folder / f"system-{len(systems) + 1}"
            own.mkdir()
            system = System(
                stack.enter_context(places.database(servers, template)),
                stack.enter_context(places.vhost(servers)),
                own,
                Counts(apis=apis, relays=relays, workers=workers),
                settings=settings,
                users_url=servers.management_url,
                with_nginx=with_nginx,
                launch=launch,
            )
            systems.append(system)
            return stack.enter_context(system)

        yield start
