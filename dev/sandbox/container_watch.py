"""Beside each container: `python -m dev.sandbox.container_watch [--keep-up | --remove] NAME`.

Copies the container's log to stdout, through restarts, until it is removed.
With --keep-up, a container that ended is started again.
With --remove, removes it: what the keeper does when the owner is gone.
"""

import argparse
import sys
import time
from typing import Any

import docker  # type: ignore[import-untyped]  # see docker_engine
from docker.errors import APIError, NotFound  # type: ignore[import-untyped]
from requests import RequestException

from dev.sandbox import docker_engine

LOOK_SECONDS = 0.2


def watch(name: str, *, keep_up: bool) -> None:
    client = docker.from_env(timeout=3600)
    since = 0.0
    seen = False
    while True:
        try:
            container = client.containers.get(name)
            seen = True
            if container.status == "running":
                since = copy_log(container, since)
            elif keep_up and container.status == "exited":
                container.start()
        except NotFound:
            if seen:
                return
        except (APIError, RequestException):
            # The engine restarts, or the container is on its way out: look again.
            pass
        time.sleep(LOOK_SECONDS)


def copy_log(container: Any, since: float) -> float:
    """Copy until the container ends; return the time up to which that is done."""
    for chunk in container.logs(stream=True, follow=True, since=since or None):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    return time.time()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep-up", action="store_true")
    parser.add_argument("--remove", action="store_true")
    parser.add_argument("name")
    options = parser.parse_args()
    if options.remove:
        docker_engine.remove(options.name, docker_engine.CREATED_SECONDS)
    else:
        watch(options.name, keep_up=options.keep_up)
    return 0


if __name__ == "__main__":
    sys.exit(main())
