"""One line says which servers were taken, and why."""

import pytest

from sandbox.choice import ChoiceError, choose

URLS = {"DATABASE_URL": "postgresql://u:p@h/d", "AMQP_URL": "amqp://u:p@h/v"}


def test_asked_for() -> None:
    """
    SERVERS decides, whatever else is set.
    """
    assert str(choose({"SERVERS": "local"} | URLS)) == "servers: local (SERVERS=local)"


def test_both_urls() -> None:
    """
    Both URLs, and SERVERS unset, mean the environment's servers.
    """
    assert str(choose(URLS)) == "servers: env (DATABASE_URL and AMQP_URL are set)"


def test_env_without_urls() -> None:
    """
    SERVERS=env without the URLs is refused, and the missing ones are named.
    """
    with pytest.raises(ChoiceError, match="SERVERS=env needs AMQP_URL"):
        choose({"SERVERS": "env", "DATABASE_URL": URLS["DATABASE_URL"]})


def test_unknown() -> None:
    """
    A word that is no choice is refused with those that are.
    """
    with pytest.raises(ChoiceError, match="SERVERS=cloud is none of env, docker, local"):
        choose({"SERVERS": "cloud"})
