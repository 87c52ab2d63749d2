"""Who runs an operator's command, for the audit."""

import os
import pwd
import socket


def actor(database_role: str) -> str:
    """Return `user@host as database_role`; the user by the process's uid, since anybody may set LOGNAME."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user need not have a name
        user = str(os.geteuid())
    return f"{user}@{socket.gethostname()} as {database_role}"
