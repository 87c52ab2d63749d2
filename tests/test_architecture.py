"""What holds for every module of the product; the directions of the imports are contracts in pyproject.toml."""

import ast
import gc
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"orders": ROOT / "src" / "orders", "relay": ROOT / "relay"}

# Commands for people stand at the edge themselves: where nothing else is said, they look around in the caller's shell.
COMMANDS = {"orders.tools.replay.command", "orders.tools.run_env", "relay.operate"}

# `python -m relay` runs with these: the four of pyproject.toml, and the two that aiormq itself brings and speaks in.
RELAYS_PACKAGES = {"aiormq", "msgspec", "prometheus_client", "psycopg"} | {"pamqp", "yarl"}


def modules(package: str) -> list[str]:
    paths = (path.relative_to(FOLDERS[package]) for path in FOLDERS[package].rglob("*.py"))
    return sorted(".".join(path.with_suffix("").parts) for path in paths if path.stem != "__init__")


@cache
def tree(package: str, module: str) -> ast.Module:
    # Python 3.11 fails here ("AST constructor recursion depth mismatch") if the collector frees something with
    # a traceback for last words, as a future with an error that nobody asked for: tracebacks are parsed, too.
    gc.disable()
    try:
        return ast.parse((FOLDERS[package] / f"{module.replace('.', '/')}.py").read_text())
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


EVERY_MODULE = [(package, module) for package in FOLDERS for module in modules(package)]
every_module = pytest.mark.parametrize(
    ("package", "module"), EVERY_MODULE, ids=[".".join(each) for each in EVERY_MODULE]
)


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

    assert module.split(".")[-1] == "settings" or f"{package}.{module}" in COMMANDS or not names & readers


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


OWN_IMPORT = re.compile(r"^[ \t]*(?:from|import)\s+(?:orders|relay|dev|tests)\b[^()\n]*(?:\([^)]*\))?", re.MULTILINE)


def test_our_own_names_are_imported_as_they_are() -> None:
    """
    No module, and no test, imports a name of ours under another.
    """
    renamed = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for folder in ("src", "relay", "dev", "tests", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for found in OWN_IMPORT.finditer(path.read_text())
        if re.search(r"\bas\b", found[0])
    ]

    assert renamed == []


def test_the_page_lists_each_module_once() -> None:
    """
    docs/architecture.md has one line for each module of the product, and none for what is not there.
    """
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^(?:1\.|\|) `((?:src/orders|relay)/\S+\.py)`", page, re.MULTILINE)
    there = [str(path.relative_to(ROOT)) for folder in FOLDERS.values() for path in folder.rglob("*.py")]

    assert sorted(listed) == sorted(path for path in there if not path.endswith("__init__.py"))


def test_the_migrations_are_one_chain() -> None:
    """
    Each migration has a number of its own, and follows the one before it.
    """
    files = sorted((ROOT / "migrations" / "versions").glob("[0-9]*.py"))
    stated = [
        dict(re.findall(r'^(revision|down_revision) = "(\d+)"', file.read_text(), re.MULTILINE)) for file in files
    ]

    numbers = [f"{number:04d}" for number in range(1, len(files) + 1)]
    assert [each["revision"] for each in stated] == [file.name[:4] for file in files] == numbers
    assert [each.get("down_revision") for each in stated] == [None, *numbers[:-1]]
