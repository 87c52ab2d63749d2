"""Who is named in the audit."""

import os
import pwd
import socket

import pytest

from orders.tools.actor import actor


def test_a_user_cannot_take_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The audit has the name of the process's uid and the database's role, whatever the environment says.
    """
    monkeypatch.setenv("LOGNAME", "somebody-else")

    assert actor("ops") == f"{pwd.getpwuid(os.geteuid()).pw_name}@{socket.gethostname()} as ops"


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    In a container whose user has no name, the audit has the uid.
    """

    def no_name(uid: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", no_name)

    assert actor("ops") == f"{os.geteuid()}@{socket.gethostname()} as ops"
