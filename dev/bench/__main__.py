"""The measurements: `python -m dev.bench --help`."""

import importlib

import click
from rich.console import Console

from dev.bench.measurement import Bench, SharedServers
from dev.bench.record import Form

MAIN = ("placing", "relay", "end_to_end")
NAMES = {
    "placing": "orders through nginx, against the tutorial's design and a handler that does nothing",
    "batch": "orders by batches of 100, against single placements; memory of an api that takes batches of 1,000",
    "reads": "an order, a page of a list, the opening of a stream, against a handler that does nothing",
    "relay": "a backlog, against `basic_publish`; a held horizon, sent rows, an idle relay",
    "end_to_end": "from the client to done, at its highest rate and at fixed ones",
    "limits": "what PostgreSQL and RabbitMQ do without us: our statement by pgbench, a consumer that only acks",
    "everyday": "an order at 20 to 1,000 a second: CPU, statements, wake-ups, latency (AGAINST=REV: in turn with it)",
    "footprint": "connections, memory, CPU when idle; WAL, statements and CPU of an order; start-up",
    "streams": "1,000 live streams on one api",
    "against": "this tree against an earlier commit of it (AGAINST=REVISION): placing and end to end",
    "away": "how soon placements say that the database is away, and that it is back",
}


@click.command(epilog="\b\n" + "\n".join(f"{name:<11} {what}" for name, what in NAMES.items()))
@click.argument("names", nargs=-1, type=click.Choice(list(NAMES)), metavar="[NAME]...")
@click.option("--full", is_flag=True, envvar="FULL", help="The long form, up to an hour; run again, it goes on.")
def main(names: tuple[str, ...], full: bool) -> None:
    """Run the named measurements, or the main ones (placing, relay, end_to_end: ten minutes together).

    Sides of a comparison take turns. The tables are printed; the JSON goes to .run/bench/.
    """
    console = Console()
    form: Form = "full" if full else "short"
    wanted = names or (tuple(name for name in NAMES if name != "against") if full else MAIN)
    with SharedServers(console) as shared:
        for name in wanted:
            bench = Bench(name, form, console, shared)
            importlib.import_module(f"dev.bench.{name}").measure(bench)
            bench.finish()


if __name__ == "__main__":
    main()
