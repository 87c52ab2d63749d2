"""A role for each process on given servers: its URLs, made from those of the administrator, and its way in.

The passwords follow from the administrator's, so that nobody has to remember them: whoever knows one URL knows all, as
with any database and vhost on the same servers.
"""

import hashlib
import re
from contextlib import suppress
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx
import psycopg

from orders.broker.users import USERS
from orders.database.roles import ROLES, let_log_in
from orders.tools.roles import put_users, vhost_of


def url_for(role: str, url: str, administrator: str | None = None) -> str:
    """Return the URL, or the comma-separated list of them, as that of a role (`orders_api`).

    `administrator` is a URL with the password that the role's follows from; None: this one.
    """
    user = f"{role}:{_password(role, administrator or url)}@"
    each = (urlsplit(one.strip()) for one in re.split(r",(?=\w+://)", url))
    return ",".join(urlunsplit(one._replace(netloc=user + one.netloc.rpartition("@")[2])) for one in each)


def _password(role: str, url: str) -> str:
    secret = unquote(urlsplit(re.split(r",(?=\w+://)", url)[0]).password or "")
    return hashlib.sha256(f"{secret}:{role}".encode()).hexdigest()[:32]


def open_database(url: str) -> bool:
    """Let the roles log in, unless they do; return whether they do: it takes an administrator of the whole server."""
    with suppress(psycopg.OperationalError):
        psycopg.connect(url_for(ROLES[-1], url), connect_timeout=10).close()
        return True
    try:
        let_log_in(url, {role: _password(role, url) for role in ROLES})
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def open_vhost(amqp_url: str, management_url: str | None) -> bool:
    """Let the users into the vhost; return whether they may: it takes an administrator and the management interface."""
    if management_url is None:
        return False
    try:
        put_users(management_url, vhost_of(amqp_url), {user.name: _password(user.name, amqp_url) for user in USERS})
    except httpx.HTTPError:
        return False
    return True
