"""What both packages need, and neither may import from the other, is there twice and the same."""

import pytest

from tests.test_architecture import FOLDERS

TWINS = ("amqp_bytes", "backoff", "severing", "sieve", "words")


@pytest.mark.parametrize("module", TWINS)
def test_twins_are_the_same(module: str) -> None:
    """
    What is mended in one package is mended in the other, too: the two files are the same to the byte.
    """
    orders, relay = ((folder / f"{module}.py").read_bytes() for folder in FOLDERS.values())

    assert orders == relay, f"copy what you changed of {module}.py to the other package"
