"""The page of the state machines names the statements and the states that the product has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "state_machine.md").read_text()

# "`SETTLE` and `SETTLE_CLOSE` in `relay/outbox_table.py`"
NAMED = re.compile(r"((?:`\w+`(?: and )?)+) in `([\w/]+\.py)`")
STATEMENTS = sorted({(path, name) for names, path in NAMED.findall(PAGE) for name in re.findall(r"`(\w+)`", names)})

CHECKS = re.compile(r"CHECK \((?:status|state) IN \(([^)]*)\)\)")


@pytest.mark.parametrize(("path", "name"), STATEMENTS)
def test_each_statement_is_where_the_page_says(path: str, name: str) -> None:
    """
    A statement that the page names is defined in the file that it names.
    """
    source = (ROOT / path).read_text()

    assert re.search(rf"^(?:{name}: LiteralString = |async def {name}\()", source, re.MULTILINE)


def test_each_state_is_drawn() -> None:
    """
    Each status of an order, state of an outbox row and state of a dead letter is part of a diagram.
    """
    migrations = "".join(path.read_text() for path in sorted((ROOT / "migrations" / "versions").glob("*.py")))
    states = {state for states in CHECKS.findall(migrations) for state in re.findall(r"'(\w+)'", states)}
    drawn = set(re.findall(r"\w+", "".join(re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL))))

    assert {"placed", "parked", "discarded"} <= states
    assert states <= drawn
