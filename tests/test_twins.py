"""What both packages need, and neither may import from the other, is there twice and the same."""

import pytest

from tests.test_architecture import FOLDERS

# A module of the relay, and where orders has the same.
TWINS = {
    "actor.py": "tools/actor.py",
    "amqp_bytes.py": "broker/amqp_bytes.py",
    "backoff.py": "runtime/backoff.py",
    "error_text.py": "model/error_text.py",
    "frame_filter.py": "broker/frame_filter.py",
    "setting_files.py": "runtime/setting_files.py",
    "session_probe.py": "database/session_probe.py",
    "severing.py": "database/severing.py",
    "management.py": "broker/management.py",
    "time_ago.py": "tools/time_ago.py",
}


@pytest.mark.parametrize("module", TWINS)
def test_twins_are_the_same(module: str) -> None:
    """
    What is mended in one package is mended in the other, too: the two files are the same to the byte.
    """
    relay, orders = FOLDERS["relay"] / module, FOLDERS["orders"] / TWINS[module]

    assert orders.read_bytes() == relay.read_bytes(), f"copy what you changed of {module} to the other package"
