"""The Docker engine: whether it can serve, and how a container of ours goes for good."""

import os
import socket
import sys
import time

import docker  # type: ignore[import-untyped]  # it has no types, and neither has anybody made some that fit
from docker.errors import APIError, DockerException, ImageNotFound, NotFound  # type: ignore[import-untyped]

POSTGRES_IMAGE = "postgres:17"
RABBITMQ_IMAGE = "rabbitmq:4-management"
DEFAULT_HOST = "unix:///var/run/docker.sock"
PING_SECONDS = 5
PULL_SECONDS = 600
CREATED_SECONDS = 5.0  # for an engine that was just asked to make a container by somebody who is gone


def why_not() -> str | None:
    """What keeps the engine from serving, or None; images that are missing are pulled."""
    if not is_listening(os.environ.get("DOCKER_HOST") or DEFAULT_HOST):
        return "no Docker engine answers"
    try:
        client = docker.from_env(timeout=PING_SECONDS)
    except DockerException:
        return "no Docker engine answers"
    try:
        for image in (POSTGRES_IMAGE, RABBITMQ_IMAGE):
            if not has(client, image) and not pull(image):
                return f"the Docker engine has no {image} and cannot pull it"
    except (DockerException, OSError):
        return "no Docker engine answers"
    finally:
        client.close()
    return None


def is_listening(host: str) -> bool:
    """Somebody is at the socket; only asked of local ones, where the client would leave its own open."""
    if not host.startswith("unix://"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(host.removeprefix("unix://"))
        except OSError:
            return False
    return True


def has(client: docker.DockerClient, image: str) -> bool:
    try:
        client.images.get(image)
    except ImageNotFound:
        return False
    return True


def pull(image: str) -> bool:
    print(f"pulling {image}", file=sys.stderr, flush=True)
    client = docker.from_env(timeout=PULL_SECONDS)
    try:
        client.images.pull(image)
    except (APIError, OSError):
        return False
    finally:
        client.close()
    return True


def remove(name: str, patience: float = 0) -> None:
    """Remove the container with its data, whatever state it is in.

    With patience, wait so long for one that is not there yet.
    """
    client = docker.from_env()
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                client.containers.get(name).remove(force=True, v=True)
            except NotFound:
                if time.monotonic() >= deadline:
                    return
                time.sleep(0.1)
            except APIError as error:
                # Somebody else is removing it.
                if error.status_code != 409:
                    raise
                return
            else:
                return
    finally:
        client.close()
