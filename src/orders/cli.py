"""The command `orders`: puts together the commands of orders.tools."""

import asyncio
import logging

import click

from orders.broker import topology
from orders.model.errors import StartupError
from orders.runtime.settings import TopologySettings
from orders.tools import admin, client
from orders.tools.command_line import fail
from orders.tools.dead_letters import dead
from orders.tools.doctor import doctor
from orders.tools.reconcile.command import reconcile
from orders.tools.replay.command import replay
from orders.tools.roles import roles
from orders.tools.run_env import environment_for


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="orders")
def main() -> None:
    """Use the order service as a client, and operate it."""
    logging.getLogger("aiormq").setLevel("CRITICAL")  # it logs the errors that we handle


@main.command("topology")
@click.option("--wait", default=30.0, show_default=True, help="Seconds to wait until RabbitMQ answers.")
def declare_topology(wait: float) -> None:
    """Declare RabbitMQ's exchanges, queues and bindings.

    Reads AMQP_URL; if it is not set, .run/env of `make up`. Running it again changes nothing. If one of them exists
    with other properties, the command leaves it unchanged, names it and ends with exit code 1.
    """
    settings = TopologySettings.read_or_exit("orders topology", environment_for(TopologySettings))
    try:
        asyncio.run(topology.wait_and("declare", settings.amqp_url, wait))
    except StartupError as error:
        fail("orders topology", str(error))
    click.echo("exchange orders, queues orders.work and orders.dead, and their bindings are there")


for command in (*client.COMMANDS, admin.clients, admin.purge, dead, replay, reconcile, doctor, roles):
    main.add_command(command)


if __name__ == "__main__":
    main()
