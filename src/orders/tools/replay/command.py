"""`orders replay`: its options, its progress, and its report on the screen."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import click
import msgspec
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orders.model.currencies import Currency
from orders.tools.command_line import fail
from orders.tools.replay.client import Replay, ReplayLimits, ReplayReport
from orders.tools.replay.invoices import CURRENCY, MalformedFile, RefusalReason, survey
from orders.tools.run_env import RUN_ENV, read_run_env

DEFAULT_URL = "http://127.0.0.1:8080"

BAR_SECONDS = 0.1
LINE_SECONDS = 2.0


def default_url(environ: Mapping[str, str] = os.environ, run_env: Path = RUN_ENV) -> str:
    """Return BASE_URL from the environment, else of the system that `make up` started, else compose's address."""
    if environ.get("BASE_URL"):
        return environ["BASE_URL"]
    return read_run_env(run_env).get("BASE_URL", DEFAULT_URL)


@contextlib.asynccontextmanager
async def progress_shown(replay: Replay, console: Console) -> AsyncIterator[None]:
    """While it is open, show the progress: two bars on a terminal, elsewhere a line after each change."""
    bars = Progress(
        TextColumn("{task.description:<7}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        auto_refresh=False,
        disable=not console.is_terminal,
    )
    placed, done = (bars.add_task(name, total=replay.survey.accepted, note="") for name in ("placed", "done"))
    last_line = ""

    def show() -> None:
        nonlocal last_line
        bars.update(placed, completed=replay.placed, note=f"{replay.retries} retries" if replay.retries else "")
        bars.update(done, completed=replay.statuses["done"], refresh=True)
        line = f"{replay.placed} placed, {replay.statuses['done']} done of {replay.survey.accepted}"
        if replay.retries:
            line += f", {replay.retries} retries ({replay.trouble})"
        if line != last_line and not console.is_terminal:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        last_line = line

    async def show_on() -> None:
        while True:
            await asyncio.sleep(BAR_SECONDS if console.is_terminal else LINE_SECONDS)
            show()

    with bars:
        showing = asyncio.create_task(show_on(), name="replay-progress")
        try:
            yield
        finally:
            showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await showing
            show()


def table_of(report: ReplayReport) -> Table:
    """Lay out a report as a table."""
    table = Table(title=f"{report.file} -> {report.to}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column(overflow="fold")

    def row(name: str, count: int, note: str = "") -> None:
        table.add_row(name, f"{count:,}", escape(note))

    row("invoices", report.invoices)
    if report.blank:
        row("blank rows", report.blank, "skipped")
    row("refused, not sent", report.refused, "by the rule:")
    for name, refused in report.refused_by.items():
        row("", refused.count, f"{RefusalReason[name.upper()].value} ({refused.example})")
    table.add_section()
    row("placed", report.placed, f"{report.placed_before:,} of them by an earlier run" if report.placed_before else "")
    row("done", report.done, f"{report.orders_per_second:,g} orders/s in {report.seconds:,g} s")
    for name, count, what in (
        ("failed", report.failed, "by their handler"),
        ("cancelled", report.cancelled, "by another client"),
        ("unfinished", report.unfinished, "placed, but not ended when we stopped waiting"),
        ("lost", report.lost, "placed, but then the service answered with an error"),
        ("rejected", report.rejected, "by the service"),
        ("not placed", report.unplaced, "not sent, or not answered"),
        ("retries", report.retries, "after no answer, 429, 502, 503 or 504"),
    ):
        if count:
            row(name, count, what)
    for not_done in report.not_done:
        table.add_row("", "", escape(f"{not_done.invoice} {not_done.order_id or ''} {not_done.what}"))
    table.add_section()
    for name, what in (("accept", "request to 201, retries included"), ("placed_to_end", "by the service's clock")):
        leg = report.legs[name]
        if leg.orders:
            table.add_row(name.replace("_", " "), "", f"p50 {leg.p50_ms:g} ms, p99 {leg.p99_ms:g} ms ({what})")
    return table


async def run_shown(replay: Replay, console: Console) -> None:
    """Run a replay, and show its progress on the console."""
    async with progress_shown(replay, console):
        await replay.run()


@click.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--to", metavar="URL", help="Base URL of the service.", show_default=f"BASE_URL, .run/env, else {DEFAULT_URL}"
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Maximum number of orders per second.",
    show_default="no limit",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=ReplayLimits().concurrency,
    show_default=True,
    help="Number of requests in flight.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1000),
    default=ReplayLimits().batch,
    show_default=True,
    help="Number of orders in one request, at most 1 MiB of them.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0, min_open=True),
    default=ReplayLimits().patience,
    show_default=True,
    help="Seconds without progress after which the command gives up.",
)
@click.option(
    "--run",
    "run_name",
    default="",
    metavar="NAME",
    help="Name of the run: another name places the file's orders again.",
)
@click.option(
    "--currency",
    type=click.Choice(get_args(Currency)),
    metavar="CODE",
    default=CURRENCY,
    show_default=True,
    help="Currency of the prices, a code of ISO 4217; to place the orders again in another one, also give --run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def replay(
    file: Path,
    to: str | None,
    rate: float | None,
    concurrency: int,
    batch: int,
    patience: float,
    run_name: str,
    currency: Currency,
    as_json: bool,
) -> None:
    """Place the invoices of a CSV file and follow the orders.

    FILE is CSV, plain or gzip. An invoice is refused as a whole, and not sent, if it is a cancellation (C...), or if a
    line has a quantity or a price that is not above zero. Rows without any text are skipped. The Idempotency-Key of an
    order is made from the file's content and the invoice's number: after an interruption, the same command continues,
    and places nothing twice.

    Exit code 0: every order is done. 1: some are not. 2: wrong file or usage. 130: interrupted.
    """
    url = to or default_url()
    if not url.startswith(("http://", "https://")) or not urlsplit(url).hostname:
        raise click.BadParameter(f"{url!r} is not an http:// or https:// URL", param_hint="--to")
    if not _RUN_NAME(run_name):
        raise click.BadParameter("it must be 1 to 64 letters, digits or characters of . _ -", param_hint="--run")
    if not file.is_file():
        raise click.BadParameter("the file is read twice: a pipe does not do", param_hint="FILE")

    console = Console(stderr=True)
    try:
        found = survey(file, currency)
    except (MalformedFile, OSError) as error:
        fail("orders replay", f"{file}: {error}; nothing was sent", 2)
    accepted, refused = f"{found.accepted:,} to place", f"{sum(found.refused.values()):,} refused"
    blank = f", {found.blank:,} blank rows skipped" if found.blank else ""
    click.echo(f"{file}: {found.lines:,} lines, {found.invoices:,} invoices: {accepted}, {refused}{blank}", err=True)

    limits = ReplayLimits(rate=rate, concurrency=concurrency, batch=batch, patience=patience)
    running = Replay(file, found, url, limits, run_name)
    code, error_line = 0, ""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_shown(running, console))
    except (MalformedFile, OSError) as error:
        code, error_line = 2, f"{file} has been changed meanwhile: {error}"
    except KeyboardInterrupt:
        code, error_line = 130, "interrupted"
    report = running.report()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        Console().print(table_of(report))
    if code == 0 and not report.complete:
        code, error_line = 1, report.gave_up or f"{report.accepted - report.done:,} orders are not done"
    if code:
        counts = f"{report.placed:,} of {report.accepted:,} were placed, {report.done:,} are done"
        fail("orders replay", f"{error_line}; {counts}", code)


_RUN_NAME = re.compile(r"[A-Za-z0-9._-]{0,64}").fullmatch
