"""`orders roles`: let each process log in as a role of its own, in PostgreSQL and in RabbitMQ."""

import shlex
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

import click
import httpx
import psycopg

from orders.broker import users
from orders.database.roles import ROLES, let_log_in, statements
from orders.model.error_text import first_line
from orders.runtime.settings import RolesSettings
from orders.tools.command_line import fail

PROGRAM = "orders roles"
CALL_SECONDS = 30.0


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Print what would be run, with the passwords; run nothing.")
def roles(only_print: bool) -> None:
    """Let each process log in as a role of its own.

    Reads the passwords from ORDERS_API_PASSWORD, ORDERS_WORKER_PASSWORD, ORDERS_RELAY_PASSWORD,
    ORDERS_OPERATOR_PASSWORD and ORDERS_READ_PASSWORD; a role without one stays as it is. DATABASE_URL, of a superuser
    or a role that may change these roles: makes the roles of PostgreSQL that are missing, grants what each needs and
    sets the passwords. MANAGEMENT_URL, of an administrator of RabbitMQ, as in http://user:password@host:15672: makes
    the users of RabbitMQ, in the vhost of AMQP_URL. Running it again changes nothing but the passwords.
    """
    settings = RolesSettings.read_or_exit(PROGRAM)
    passwords = {role: password for role in ROLES if (password := getattr(settings, f"{role}_password"))}
    vhost = vhost_of(settings.amqp_url)
    if not passwords:
        fail(PROGRAM, "no password is set, as in ORDERS_API_PASSWORD", 2)
    if only_print:
        for statement in statements(passwords):
            click.echo(f"{statement.as_string().strip()};")
        for command in users.commands(vhost, passwords):
            click.echo(f"# rabbitmqctl {shlex.join(command)}")
        return
    if not settings.database_url and not settings.management_url:
        fail(PROGRAM, "neither DATABASE_URL nor MANAGEMENT_URL is set; --print shows what to run by hand", 2)
    if settings.database_url:
        try:
            for warning in let_log_in(settings.database_url, passwords):
                click.echo(f"{PROGRAM}: {warning}", err=True)
        except psycopg.errors.UndefinedFunction:
            fail(PROGRAM, "the database is not migrated: run `alembic upgrade head`")
        except psycopg.Error as error:
            fail(PROGRAM, f"{first_line(error)}; --print shows what an administrator has to run")
        click.echo(f"PostgreSQL: {', '.join(passwords)}")
    if settings.management_url:
        try:
            put_users(settings.management_url, vhost, passwords)
        except httpx.HTTPError as error:
            fail(PROGRAM, f"RabbitMQ's management interface: {first_line(error)}; is MANAGEMENT_URL right?")
        click.echo(f"RabbitMQ: {', '.join(user.name for user in users.USERS if user.name in passwords)}")


def put_users(management_url: str, vhost: str, passwords: Mapping[str, str]) -> None:
    """Make those of RabbitMQ's users that have a password, or change them; raises httpx.HTTPError."""
    parts = urlsplit(management_url)
    base = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    auth = (unquote(parts.username or ""), unquote(parts.password or ""))
    # Certificates take longer to read than the users to make; a proxy is for other places.
    is_tls = parts.scheme == "https"
    with httpx.Client(
        base_url=f"{base}/api", auth=auth, timeout=CALL_SECONDS, trust_env=False, verify=is_tls
    ) as client:
        for user in users.USERS:
            if user.name in passwords:
                made = {"password": passwords[user.name], "tags": user.tags}
                client.put(f"/users/{user.name}", json=made).raise_for_status()
                permissions = {"configure": user.configure, "write": user.write, "read": user.read}
                path = f"/permissions/{quote(vhost, safe='')}/{user.name}"
                client.put(path, json=permissions).raise_for_status()


def vhost_of(amqp_url: str) -> str:
    """Return the vhost of the first AMQP URL; `/` if it names none."""
    return unquote(urlsplit(amqp_url.split(",")[0]).path.removeprefix("/")) or "/"
