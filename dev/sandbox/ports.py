"""Ports that stay ours: a server that is stopped for a while finds its own again."""

import os
import random
import socket
import threading
from functools import lru_cache
from pathlib import Path

LOWEST = 12_000
_given: set[int] = set()
_lock = threading.Lock()


@lru_cache
def highest() -> int:
    """Below the range from which the kernel takes ports for outgoing connections.

    From there a connection might take a stopped server's port.
    """
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


@lru_cache
def ours() -> range:
    """The ports to choose from; SANDBOX_PORTS=2/4 is the second quarter, for processes that work side by side."""
    number, parts = map(int, os.environ.get("SANDBOX_PORTS", "1/1").split("/"))
    return range(LOWEST, max(highest(), LOWEST + 5_000))[number - 1 :: parts]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do it: a port with connections in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on and this process has not given out before."""
    with _lock:
        while True:
            port = random.choice(ours())
            if port not in _given and is_free(port):
                _given.add(port)
                return port
