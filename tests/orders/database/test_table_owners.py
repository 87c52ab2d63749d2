"""Each table has one module that owns its columns; SQL stands in database/, and says which other modules touch a table.

Read from the sources: a statement is a string that begins like one, or an f-string whose parts are constants.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from orders.database import (
    api_keys_table,
    dead_letters_table,
    idempotency_keys_table,
    orders_table,
    outbox_table,
    retries_table,
    stragglers_table,
)

ROOT = Path(__file__).resolve().parents[3] / "src" / "orders"
DATABASE = ROOT / "database"

# The queries of a report, and the two that have a SQLite database of their own.
ELSEWHERE = {"tools/reconcile/queries.py", "tools/reconcile/scratch.py", "tools/replay/invoices.py"}

# The owner of each table, and the transitions that touch it in the statement of another one.
TOUCHED_BY = {
    "orders": {
        "orders_table",
        "attempt_log",  # owns that column
        "place_orders",
        "cancel_orders",
        "claim_orders",
        "finish_orders",
        "postpone_orders",
        "redrive_orders",
        "purge_orders",
        "resend_messages",  # locks the rows
        "retries_table",  # locks the rows
        "dead_letters_table",  # fails the order of a letter, and shows its status
        "worker_lock",  # its oid is the lock's namespace
        "stragglers_table",  # looks for orders that nothing carries, and lets go of lost claims
    },
    "outbox": {"outbox_table", "resend_messages", "stragglers_table"},
    "outbox_mark": {"outbox_table", "stragglers_table"},
    "outbox_parked": {"stragglers_table"},
    "outbox_waiting": {"outbox_table"},
    "outbox_audit": {"resend_messages"},
    "idempotency_keys": {"idempotency_keys_table"},
    "client_keys": {"api_keys_table"},
    "retries": {"retries_table", "claim_orders", "dead_letters_table", "stragglers_table"},
    "stragglers": {"stragglers_table"},
    "sweep": {"stragglers_table"},
    "dead_letters": {"dead_letters_table", "finish_orders", "redrive_orders"},
    "dead_letter_audit": {"dead_letters_table", "redrive_orders"},
    "verdicts": {"dead_letters_table"},
    "inbox": {"inbox"},
}

COLUMNS = {
    "orders": orders_table.COLUMNS,
    "outbox": outbox_table.COLUMNS,
    "idempotency_keys": idempotency_keys_table.COLUMNS,
    "client_keys": api_keys_table.COLUMNS,
    "retries": retries_table.COLUMNS,
    "stragglers": stragglers_table.COLUMNS,
    "dead_letters": dead_letters_table.COLUMNS,
    "dead_letter_audit": dead_letters_table.AUDIT_COLUMNS,
}

STATEMENT = re.compile(
    r"\s*(--|SELECT\b|INSERT\b|UPDATE\b|DELETE\b|WITH\b|NOTIFY\b|LOCK\b|TRUNCATE\b|CREATE\b|ALTER\b)"
)
COMMENT = re.compile(r"--.*")
# Not `DO UPDATE SET` and `FOR UPDATE`, which name no table.
TABLE = re.compile(r"(?:\b(?:FROM|JOIN|INTO)\s+|(?<!DO )(?<!FOR )\bUPDATE\s+)(\w+)\b(?!\()|'(\w+)'::regclass")
PART = "{}"


class Sql(NamedTuple):
    """A statement, or a part of one: its own text, and the expressions that stand in it."""

    module: str
    text: str
    parts: list[ast.expr]


@cache
def strings(path: Path) -> list[Sql]:
    """Every string of a module but its docstrings; of an f-string, its own text."""
    return list(strings_in(path))


def strings_in(path: Path) -> Iterator[Sql]:
    tree = ast.parse(path.read_text())
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in inner | docstrings:
                yield Sql(path.stem, COMMENT.sub("", text), [])
            case ast.JoinedStr(values=values):
                texts = [str(part.value) if isinstance(part, ast.Constant) else PART for part in values]
                parts = [part.value for part in values if isinstance(part, ast.FormattedValue)]
                yield Sql(path.stem, COMMENT.sub("", "".join(texts)), parts)


def all_sql() -> list[Sql]:
    return [sql for path in sorted(DATABASE.glob("*.py")) for sql in strings(path) if STATEMENT.match(sql.text)]


def one_line(text: str) -> str:
    """A list of columns without line breaks, without the table's name and without casts."""
    return re.sub(r"::\w+", "", re.sub(r"\bo\.", "", " ".join(text.split())))


def test_sql_stands_in_the_database_package() -> None:
    """
    No module outside of database/ has a statement for PostgreSQL, but for the queries of reconcile.
    """
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.parent != DATABASE and any(STATEMENT.match(sql.text) and has_table(sql) for sql in strings(path))
    }

    assert found == ELSEWHERE


def has_table(sql: Sql) -> bool:
    return TABLE.search(sql.text) is not None or sql.text.lstrip().startswith("NOTIFY")


def test_who_touches_a_table() -> None:
    """
    A table's name stands in its owner, and in the transitions that are named here.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for sql in all_sql():
        for match in TABLE.finditer(sql.text):
            if (table := match[1] or match[2]) in TOUCHED_BY:
                found[table].add(sql.module)

    assert dict(found) == TOUCHED_BY


@pytest.mark.parametrize("table", COLUMNS)
def test_columns_stand_once(table: str) -> None:
    """
    The list of a table's columns is written once; whatever needs it contains the constant.
    """
    columns = one_line(COLUMNS[table])
    texts = [sql for path in ROOT.rglob("*.py") for sql in strings(path)]

    assert len([sql for sql in texts if columns in one_line(sql.text)]) == 1


def test_one_insert_into_the_outbox() -> None:
    """
    Every event gets into the outbox by the same INSERT.
    """
    inserts = [sql.module for path in ROOT.rglob("*.py") for sql in strings(path) if "INSERT INTO outbox " in sql.text]

    assert inserts == ["outbox_table"]


def test_a_statement_contains_constants_alone() -> None:
    """
    A statement is whole before anything runs: what stands in it is a constant of a table's owner, never a value.
    """
    for sql in all_sql():
        for part in sql.parts:
            name = part.attr if isinstance(part, ast.Attribute) else part.id if isinstance(part, ast.Name) else ""
            assert name.isupper(), f"{sql.module}: {ast.unparse(part)} in {sql.text}"
