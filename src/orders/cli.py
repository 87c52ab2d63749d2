"""The command `orders`."""

import asyncio
import logging

import click

from orders.broker import topology as broker_topology
from orders.model.errors import StartupError
from orders.runtime.settings import TopologySettings
from orders.tools import admin, client
from orders.tools.command_line import fail
from orders.tools.dead_letters import dead
from orders.tools.doctor import doctor
from orders.tools.reconcile.command import reconcile
from orders.tools.replay.command import replay


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="orders")
def main() -> None:
    """Take orders, and see each of them through to its end."""
    logging.getLogger("aiormq").setLevel("CRITICAL")  # it logs what we handle


@main.command()
@click.option("--wait", default=30.0, show_default=True, help="Seconds to wait for RabbitMQ.")
def topology(wait: float) -> None:
    """Declare in RabbitMQ what the service needs: exchanges, queues, bindings.

    Reads AMQP_URL. Harmless to repeat; what is there in another shape is named, and left as it is.
    """
    settings = TopologySettings.read_or_exit("orders topology")
    try:
        asyncio.run(broker_topology.wait_and("declare", settings.amqp_url, wait))
    except StartupError as error:
        fail("orders topology", str(error))
    click.echo("exchange orders, queues orders.work and orders.dead, and their bindings are there")


for command in (*client.COMMANDS, admin.clients, admin.purge, dead, replay, reconcile, doctor):
    main.add_command(command)


if __name__ == "__main__":
    main()
