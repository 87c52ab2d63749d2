"""Copies of the tree, to plant in."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.sabotage.plants import Change

LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".run", "__pycache__", ".*_cache", ".hypothesis", "node_modules")


class Misplaced(Exception):
    """The text to replace is not there, or more than once."""


@contextmanager
def copy_of(tree: Path) -> Iterator[Path]:
    """A copy of the tree, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sabotage-") as folder:
        copy = Path(folder, "tree")
        shutil.copytree(tree, copy, ignore=LEFT_OUT)
        # Other users run servers from it.
        Path(folder).chmod(0o755)
        yield copy


def changed(tree: Path, change: Change) -> str:
    """Return the file's text as it would be with the change; raise Misplaced unless there is one place for it."""
    text = (tree / change.file).read_text()
    if (found := text.count(change.old)) != 1:
        raise Misplaced(f"{change.file}: found {found} times, not once: {change.old!r}")
    return text.replace(change.old, change.new)


def plant(tree: Path, changes: tuple[Change, ...]) -> None:
    """Make these changes in a copy, one after the other."""
    for change in changes:
        (tree / change.file).write_text(changed(tree, change))
