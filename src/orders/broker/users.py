"""The users of the processes in RabbitMQ, and what each may do in the service's vhost.

To declare or delete takes `configure`, to publish and to bind a queue takes `write`, to consume and to bind to an
exchange takes `read`. A passive declare, which shows that a queue is there, takes none of them.
"""

from collections.abc import Mapping
from typing import NamedTuple

NOTHING = "^$"


class User(NamedTuple):
    """A user's tags, and the names that it may configure, write and read, as regular expressions."""

    name: str
    tags: str
    configure: str = NOTHING
    write: str = NOTHING
    read: str = NOTHING


USERS = (
    User("orders_worker", "management", read=r"^orders\.(work|dead)$"),  # the tag: to read policies
    User(
        "orders_relay",
        "management",
        configure=r"^relay\.witness\.",
        write=r"^(orders|amq\.default|orders\.work|relay\.witness\..*)$",
        read=r"^relay\.witness\.",
    ),
    User("orders_operator", "monitoring"),  # the tag: to see the nodes of a cluster
    User("orders_read", "monitoring"),
)


def commands(vhost: str, passwords: Mapping[str, str]) -> list[list[str]]:
    """Return the arguments of rabbitmqctl that make those of the users that have a password, or change them."""
    return [
        command
        for user in USERS
        if user.name in passwords
        for command in (
            ["add_user", user.name, passwords[user.name]],
            ["set_user_tags", user.name, *user.tags.split()],
            ["set_permissions", "-p", vhost, user.name, user.configure, user.write, user.read],
        )
    ]
