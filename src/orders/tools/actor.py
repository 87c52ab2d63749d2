"""Who is at work, for the audit of what people do."""

import getpass
import socket


def actor() -> str:
    """Return who runs this command, for the audit."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        name = "somebody"
    return f"{name}@{socket.gethostname()}"
