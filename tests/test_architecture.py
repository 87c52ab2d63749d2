"""The architecture, executable: which module stands on which layer, and what it may import."""

import ast
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"orders": ROOT / "src" / "orders", "relay": ROOT / "relay"}

# From the bottom up. A module imports only from the layers below its own, so there can be no cycle either.
LAYERS: Mapping[str, Sequence[tuple[str, set[str]]]] = {
    "orders": (
        ("letters and numbers", {"amqp_bytes", "backoff", "deadlines", "entropy", "severing", "sieve"}),
        (
            "words",
            {
                "actor",
                "crash",
                "currencies",
                "errors",
                "head",
                "pauses",
                "preconditions",
                "request_id",
                "settings",
                "traceparent",
                "uuid7",
                "words",
                "whereabouts",
            },
        ),
        ("what an order is, and the edges of the servers", {"broker", "database", "order", "problems"}),
        ("what is told, and what keeps a connection", {"events", "findings", "session"}),
        (
            "tables, and what runs beside the requests",
            {
                "batching",
                "columns",
                "clients_table",
                "consumer",
                "dead_letters_table",
                "handlers",
                "inbox",
                "invoices",
                "keys_table",
                "liveness",
                "orders_table",
                "outbox_table",
            }
            | {"reconcile_tables", "serving", "startup", "topology", "wake_up"},
        ),
        (
            "acts that are one transaction, and jobs that recur",
            {"back_pressure", "cancel_orders", "claim_orders", "clients", "expire_keys", "listing", "live", "periodic"}
            | {"place_orders", "purge_orders", "redrive_orders", "spill"},
        ),
        ("acts that follow them", {"finish_orders", "postpone_orders", "send_invoices"}),
        ("what leads to them", {"letters", "retries", "run_handler"}),
        ("the dead, the child on trial, and what becomes of an order", {"dead_letters", "next_step", "trial"}),
        ("its parent", {"suspects"}),
        (
            "ways in: HTTP, RabbitMQ, files, people",
            {"api", "dead", "doctor", "manage", "people", "reconcile", "replay", "subscriber", "work"},
        ),
        ("what describes them", {"catalogue", "openapi"}),
        ("processes and commands", {"app", "cli", "healthcheck", "worker"}),
    ),
    "relay": (
        ("words and numbers", {"amqp_bytes", "backoff", "mark", "message", "metrics", "pace", "severing", "words"}),
        ("decisions, and the connections", {"database", "frames", "settings", "sieve", "verdict", "waves", "weather"}),
        ("what became of a claim, and the two ends", {"channel", "outbox_partitions", "outbox_table", "outcome"}),
        ("what leans on them", {"management", "outbox_repairs", "publisher"}),
        ("what the broker has to have", {"topology"}),
        ("and the proof of it", {"guard"}),
        ("loops", {"forward", "health", "operate", "upkeep", "wake", "watch"}),
        ("the process", {"__main__"}),
    ),
}

# Commands for people stand at the edge themselves: where nothing else is said, they look around in the caller's shell.
COMMANDS = {"orders.doctor", "orders.replay", "relay.operate"}

# `python -m relay` runs with these: the four of pyproject.toml, and the two that aiormq itself brings and speaks in.
RELAYS_PACKAGES = {"aiormq", "msgspec", "prometheus_client", "psycopg"} | {"pamqp", "yarl"}


def modules(package: str) -> list[str]:
    return sorted(path.stem for path in FOLDERS[package].glob("*.py") if path.stem != "__init__")


@cache
def tree(package: str, module: str) -> ast.Module:
    # Python 3.11 fails here ("AST constructor recursion depth mismatch") if the collector frees something with
    # a traceback for last words, as a future with an error that nobody asked for: tracebacks are parsed, too.
    gc.disable()
    try:
        return ast.parse((FOLDERS[package] / f"{module}.py").read_text())
    finally:
        gc.enable()


def imported(package: str, module: str) -> Iterator[str]:
    """Every module that this one imports, wherever in it, by its full name."""
    for node in ast.walk(tree(package, module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{package}.{module} imports relatively"
            assert node.module is not None
            if node.module in FOLDERS:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def level_of(package: str, module: str) -> int:
    return next(level for level, (_, names) in enumerate(LAYERS[package]) if module in names)


EVERY_MODULE = [(package, module) for package in FOLDERS for module in modules(package)]
every_module = pytest.mark.parametrize(
    ("package", "module"), EVERY_MODULE, ids=[".".join(each) for each in EVERY_MODULE]
)


@every_module
def test_every_module_stands_on_one_layer(package: str, module: str) -> None:
    """
    Each module is on the map, once.
    """
    found = [name for name, names in LAYERS[package] if module in names]

    assert len(found) == 1, f"{package}.{module} stands on {found or 'no layer'}: give it one in LAYERS"


@pytest.mark.parametrize("package", FOLDERS)
def test_there_are_no_folders(package: str) -> None:
    """
    A package is flat: its map is one list of names.
    """
    assert [str(path) for path in FOLDERS[package].glob("*/*.py")] == []


@every_module
def test_imports_run_downwards(package: str, module: str) -> None:
    """
    A module imports only from layers below its own.
    """
    own = [name.split(".")[1] for name in imported(package, module) if name.startswith(f"{package}.")]
    upward = [name for name in own if level_of(package, name) >= level_of(package, module)]

    assert upward == []


@every_module
def test_the_table_is_the_only_seam(package: str, module: str) -> None:
    """
    The relay knows nothing of the orders, nor they of it, and neither of what surrounds them.
    """
    beside = {"sandbox", "tests", "migrations", "bench", "chaos", "examples", "sabotage"}
    foreign = ({"orders", "relay"} | beside) - {package}

    assert set() == {name.split(".")[0] for name in imported(package, module)} & foreign


@pytest.mark.parametrize("module", modules("relay"))
def test_the_relay_needs_few_packages(module: str) -> None:
    """
    Any other service can take the relay as it is: it needs four packages, and what they bring.
    """
    outside = {name.split(".")[0] for name in imported("relay", module)} - sys.stdlib_module_names - {"relay"}

    assert set() == outside - RELAYS_PACKAGES


@every_module
def test_only_settings_read_the_environment(package: str, module: str) -> None:
    """
    A process is told everything at its start: below the edge, functions are given values.
    """
    readers = {"environ", "environb", "getenv", "getenvb"}
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.name
        for node in ast.walk(tree(package, module))
        if isinstance(node, ast.Attribute | ast.alias)
    }

    assert module == "settings" or f"{package}.{module}" in COMMANDS or not names & readers


@every_module
def test_nobody_takes_a_private_name(package: str, module: str) -> None:
    """
    What begins with an underscore is its module's own.
    """
    taken = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree(package, module))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in FOLDERS
        for alias in node.names
        if alias.name.startswith("_")
    ]

    assert taken == []
