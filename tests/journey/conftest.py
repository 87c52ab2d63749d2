"""Fixtures: the trace that a journey leaves, and whoever listens to its events."""

from pathlib import Path

import pytest

from tests.journey.trace import Trace


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """The files of the handler of this journey."""
    folder = tmp_path / "trace"
    folder.mkdir()
    return Trace(folder)
