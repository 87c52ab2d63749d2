"""A package's docstring is its map."""

import ast
import re
from pathlib import Path

import pytest

from dev.sandbox.process import ROOT

PACKAGES = [
    *sorted(path.parent for path in (ROOT / "src" / "orders").rglob("__init__.py")),
    *(ROOT / folder for folder in ("relay", "dev/chaos", "dev/sabotage")),
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_lists_its_modules(package: Path) -> None:
    """
    The docstring of a package lists each of its modules and packages once, and no others.
    """
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    lines = re.findall(r"^ *((?:\w+, )*\w+)  +\S", docstring, re.MULTILINE)
    listed = [name for names in lines for name in names.split(", ")]
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert sorted(listed) == sorted(modules - {"__init__"})
