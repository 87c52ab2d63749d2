"""Who is named in the audit."""

import getpass
import socket
from types import ModuleType

import pytest

from orders.tools import dead_letters
from orders.tools.reconcile import run


@pytest.mark.parametrize("command", [dead_letters, run], ids=["dead letters", "reconcile"])
@pytest.mark.parametrize("error", [KeyError, OSError])  # up to Python 3.12, and since
def test_a_user_without_a_name(command: ModuleType, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    In a container whose user has no name, each command that leaves an audit row runs all the same.
    """

    def no_name() -> str:
        raise error("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", no_name)

    assert command.actor() == f"somebody@{socket.gethostname()}"
