"""Each setting stands in docs/deployment.md, with its default, its unit and its effect, and nothing else does."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import relay.settings
from orders.runtime.settings import ApiSettings, WaitSettings, WorkerSettings

PAGE = Path(__file__).parent.parent / "docs" / "deployment.md"
SETTINGS: dict[str, list[type[msgspec.Struct]]] = {
    "api": [ApiSettings],
    "worker": [WorkerSettings, WaitSettings],
    "relay": [relay.settings.Settings],
}


def documented(section: str) -> dict[str, list[str]]:
    """Return the rows of the section's table, by variable."""
    text = PAGE.read_text().partition(f"\n### {section}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", text, re.MULTILINE)
    return {name: rest.split(" | ", 2) for name, rest in rows}


def default_of(field: Any) -> str:
    """Return a default as the page shows it."""
    if field.required:
        return "required"
    return f"`{field.default}`" if field.default != "" else "none"


@pytest.mark.parametrize("section", SETTINGS)
def test_settings_are_documented(section: str) -> None:
    """The table of a process has a row for each of its settings, no other, and the defaults are the code's."""
    rows = documented(section)
    expected = {
        field.encode_name.upper(): default_of(field)
        for settings in SETTINGS[section]
        for field in msgspec.structs.fields(settings)
    }

    assert expected == {name: default for name, (default, *_) in rows.items()}
    assert all(unit.strip() and effect.strip() not in {"", "?"} for _, unit, effect in rows.values())
