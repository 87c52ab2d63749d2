"""Which servers to use, said in one line with the reason."""

from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from dev.sandbox import docker_engine

Kind = Literal["env", "docker", "local"]


class ChoiceError(Exception):
    """SERVERS asks for what cannot be had; the message says what would help."""


class Choice(msgspec.Struct, frozen=True):
    kind: Kind
    reason: str

    def __str__(self) -> str:
        return f"servers: {self.kind} ({self.reason})"


def choose(environ: Mapping[str, str]) -> Choice:
    """By SERVERS where it is set; else the environment's, else Docker's, else this machine's own."""
    asked = environ.get("SERVERS", "")
    missing = [name for name in ("DATABASE_URL", "AMQP_URL") if not environ.get(name)]
    if asked == "env":
        if missing:
            raise ChoiceError(f"SERVERS=env needs {' and '.join(missing)}")
        return Choice("env", "SERVERS=env")
    if asked == "local":
        return Choice("local", "SERVERS=local")
    if asked == "docker":
        if obstacle := docker_engine.why_not():
            raise ChoiceError(f"SERVERS=docker: {obstacle}")
        return Choice("docker", "SERVERS=docker")
    if asked:
        raise ChoiceError(f"SERVERS={asked} is none of {', '.join(get_args(Kind))}")
    if not missing:
        return Choice("env", "DATABASE_URL and AMQP_URL are set")
    if obstacle := docker_engine.why_not():
        return Choice("local", f"{' and '.join(missing)} not set, and {obstacle}")
    return Choice("docker", f"{' and '.join(missing)} not set, and a Docker engine answers")
