"""Tests that share something stay in one of the processes that pytest-xdist shares the tests out to.

xdist's own groups (`--dist loadgroup`) are a part of a test's id, which pytest 9.2 does not let it change: they
are lost without a word. Here a worker writes the groups that it finds to a file, and ids stay as they are.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it says nothing of types

MARK = "xdist_group"


def tell(items: list[pytest.Item], path: Path) -> None:
    """Write down the group of each test, by its id; one without a mark is alone."""
    groups = {}
    for item in items:
        mark = item.get_closest_marker(MARK)
        groups[item.nodeid] = item.nodeid if mark is None else mark.args[0]
    path.write_bytes(msgspec.json.encode(groups))


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out whole groups, in the order of the tests."""

    def __init__(self, config: pytest.Config, log: Any, path: Path) -> None:
        super().__init__(config, log)
        self._path = path

    @cached_property
    def _groups(self) -> dict[str, str]:
        return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])

    def _split_scope(self, nodeid: str) -> str:
        return self._groups[nodeid]
