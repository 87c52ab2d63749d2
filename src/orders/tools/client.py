"""Commands for clients of the service, over its HTTP API: `orders place|get|watch|cancel|list`."""

import functools
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import click
import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from orders.model.currencies import amount_text
from orders.model.ids import lowest_id
from orders.model.order import TERMINAL
from orders.runtime.settings import ClientSettings
from orders.tools.attempts import print_attempts
from orders.tools.command_line import Parsed, fail
from orders.tools.run_env import read_run_env
from orders.tools.time_ago import parse_moment

COLOURS = {"placed": "cyan", "processing": "yellow", "done": "green", "failed": "red", "cancelled": "magenta"}
TO = click.option("--to", help="Base URL of the service.", show_default="BASE_URL, else that of `make up` here")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, one document per line.")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
RETRY_SECONDS = 30.0  # how long a placement is sent again, with its key

Order = dict[str, Any]


class OrdersClient:
    """An HTTP client of the service, which prints orders for a user or as JSON."""

    def __init__(self, base_url: str, api_key: str, *, as_json: bool) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx.Client(base_url=base_url, headers=headers, timeout=35)
        self.as_json = as_json
        self.console = Console()

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Return the answer to a request; end the process with one line if the service fails or refuses it."""
        with self.explained():
            answer = self.http.request(method, path, **given)
        self.expect(answer)
        return answer

    def expect(self, answer: httpx.Response) -> None:
        """End the process with the problem's title and detail in one line unless the answer is a 2xx."""
        if answer.is_success:
            return
        answer.read()
        try:
            problem = answer.json()
            detail = f"{problem['title']}: {problem['detail']} (request {problem.get('request_id')})"
        except (ValueError, KeyError):
            detail = answer.text[:200]
        fail("orders", f"{answer.status_code} {detail}")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """End the process with one line if the service does not answer."""
        try:
            yield
        except httpx.TransportError as error:
            fail("orders", f"no answer from {self.http.base_url}: {error or type(error).__name__}")

    def show(self, order: Order) -> None:
        """Print an order."""
        if self.as_json:
            click.echo(json.dumps(order))
        else:
            self.console.print(_card(order))


def _coloured(status: str) -> str:
    return f"[{COLOURS[status]}]{status}[/]"


def _total(order: Order) -> str:
    return "" if order["total_minor"] is None else amount_text(order["total_minor"], order["currency"])


def _card(order: Order) -> Table:
    table = Table.grid(padding=(0, 2))
    for name in ("order_id", "status", "version", "attempts", "customer_id", "reference"):
        value = order[name]
        if value is not None:
            table.add_row(name, _coloured(value) if name == "status" else escape(str(value)))
    table.add_row("total", _total(order))
    for name in ("failure_reason", "created_at", "updated_at", "finished_at"):
        if order[name] is not None:
            table.add_row(name, escape(str(order[name])))
    for line in order["lines"] or []:
        table.add_row(
            "line",
            f"{line['quantity']} x {escape(line['sku'])} at {amount_text(line['unit_price_minor'], order['currency'])}",
        )
    return table


def _table(orders: Sequence[Order]) -> Table:
    """Lay out orders for a terminal of 80 columns: customer and reference have a line of their own below the id."""
    table = Table(
        Column("order", overflow="fold"), "status", Column("total", justify="right"), Column("placed", no_wrap=True),
        box=None, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for order in orders:
        whose = ", ".join(escape(text) for text in (order["customer_id"], order["reference"]) if text)
        first = f"{order['order_id']}\n  {whose}" if whose else order["order_id"]
        table.add_row(first, _coloured(order["status"]), _total(order), order["created_at"][:16].replace("T", " "))
    return table


def base_url_of(given: str | None, settings: ClientSettings) -> str:
    """Return the service's URL: the given one, else BASE_URL, else the one that `make up` wrote in this folder.

    Whoever made the folder wrote that file: an API key goes to this machine only, if the file says where.
    """
    if given or settings.base_url:
        return given or settings.base_url
    url = read_run_env().get("BASE_URL")
    if not url:
        fail("orders", "where is the service? Give --to URL, or set BASE_URL, or start one here with `make up`", 2)
    if settings.orders_api_key and urlsplit(url).hostname not in LOOPBACK:
        fail("orders", f"the API key is not sent to {url}, which .run/env of this folder names: give --to URL", 2)
    return url


def calls_api(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all client commands share, and pass an OrdersClient as the first argument."""

    @TO
    @JSON
    @functools.wraps(function)
    def command(to: str | None, *, as_json: bool, **given: Any) -> None:
        function(client_of(to, as_json=as_json), **given)

    return command


def client_of(to: str | None, *, as_json: bool) -> OrdersClient:
    """Return a client of the service at `to`, or where `base_url_of` finds it."""
    settings = ClientSettings.read_or_exit("orders")
    return OrdersClient(base_url_of(to, settings), settings.orders_api_key, as_json=as_json)


def _line(given: str) -> dict[str, Any]:
    sku, *numbers = given.rsplit(":", 2)
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{given!r} is not SKU:QUANTITY:PRICE")
    return {"sku": sku, "quantity": int(numbers[0]), "unit_price_minor": int(numbers[1])}


MOMENT = Parsed("time", parse_moment)
LINE = Parsed("SKU:QUANTITY:PRICE", _line)


@click.command()
@click.option("--customer", "customer_id", default="guest", show_default=True, help="Id of the customer.")
@click.option("--currency", default="GBP", show_default=True, help="Currency code of ISO 4217.")
@click.option("--reference", help="A text of your own, up to 200 characters.")
@click.option(
    "--line",
    "lines",
    multiple=True,
    type=LINE,
    metavar="SKU:QUANTITY:PRICE",
    help="A line of the order, price in minor units; repeatable.",
)
@click.option("--file", "file", type=click.File(), help="Read the order as JSON from this file instead; - is stdin.")
@click.option("--key", help="Idempotency-Key of the request.", show_default="a random one")
@calls_api
def place(
    client: OrdersClient,
    customer_id: str,
    currency: str,
    reference: str | None,
    lines: tuple[dict[str, Any], ...],
    file: Any,
    key: str | None,
) -> None:
    """Place an order and print it.

    Sends ORDERS_API_KEY as the API key if it is set. While the service does not answer, sends the same request again,
    with the same Idempotency-Key, for up to 30 s.
    """
    if file is not None:
        body = file.read()
    else:
        body = json.dumps(
            {
                "customer_id": customer_id, "currency": currency, "lines": lines,
                **({"reference": reference} if reference else {}),
            }
        )  # fmt: skip
    headers = {"Content-Type": "application/json", "Idempotency-Key": key or secrets.token_hex(16)}
    end = time.monotonic() + RETRY_SECONDS
    while True:
        last = time.monotonic() > end
        try:
            answer = client.http.post("/orders", content=body, headers=headers)
        except httpx.TransportError:
            answer = None
        if answer is not None and (last or answer.status_code not in {502, 503, 504}):
            client.expect(answer)
            client.show(answer.json())
            return
        if answer is None and last:
            fail("orders", f"no answer from {client.http.base_url}")
        time.sleep(0.5)


@click.command()
@click.argument("order_id")
@click.option("--attempts", is_flag=True, help="Print how its attempts ended instead, for operators.")
@TO
@JSON
def get(order_id: str, to: str | None, *, attempts: bool, as_json: bool) -> None:
    """Print an order.

    --attempts reads DATABASE_URL, or .run/env of `make up`; the API does not show them.
    """
    if not attempts:
        client = client_of(to, as_json=as_json)
        client.show(client.ask("GET", f"/orders/{order_id}").json())
        return
    try:
        print_attempts(UUID(order_id), as_json=as_json)
    except ValueError:
        fail("orders get", f"{order_id!r} is no order's id", 2)


@click.command()
@click.argument("order_id")
@calls_api
def cancel(client: OrdersClient, order_id: str) -> None:
    """Cancel an order that no worker has started, and print it."""
    client.show(client.ask("POST", f"/orders/{order_id}/cancel").json())


@click.command(name="list")
@click.option("--status", type=click.Choice(sorted(COLOURS)), help="Only orders with this status.")
@click.option("--customer", "customer_id", help="Only orders of this customer.")
@click.option("--reference", help="Only orders with this reference.")
@click.option("--since", type=MOMENT, help="Only orders placed since then: 2026-11-23T18:00:00Z, or 15m, 2h, 1d ago.")
@click.option("--until", type=MOMENT, help="Only orders placed before then.")
@click.option("--limit", default=50, show_default=True, help="Maximum number of orders; 0 lists all.")
@calls_api
def list_(
    client: OrdersClient, limit: int, since: datetime | None, until: datetime | None, **filters: str | None
) -> None:
    """List orders, newest first."""
    # An order's id begins with the time of its placement, and the cursor of a list is an id.
    oldest = str(lowest_id(since)) if since else ""
    found: list[Order] = []
    query: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    if until:
        query["after"] = str(lowest_id(until))
    while True:
        page = client.ask("GET", "/orders", params={**query, "limit": min(limit - len(found), 100) if limit else 100})
        orders = page.json()["orders"]
        found += [order for order in orders if order["order_id"] >= oldest]
        query["after"] = page.json()["next"]
        if query["after"] is None or query["after"] < oldest or 0 < limit <= len(found):
            break
    if client.as_json:
        for order in found:
            click.echo(json.dumps(order))
        return
    client.console.print(_table(found))


@click.command()
@click.argument("order_id")
@calls_api
def watch(client: OrdersClient, order_id: str) -> None:
    """Print each change of an order until it ends.

    Exit code 0: it ended as `done`. 1: it ended in another way, or the service refused the request.
    """
    seen = ""
    while True:
        try:
            headers = {"Last-Event-ID": seen} if seen else {}
            with client.http.stream("GET", f"/orders/{order_id}/events", headers=headers) as answer:
                if answer.status_code not in {502, 503, 504}:
                    client.expect(answer)
                for line in answer.iter_lines():
                    if line.startswith("id: "):
                        seen = line.removeprefix("id: ")
                    if line.startswith("data: "):
                        now = json.loads(line.removeprefix("data: "))
                        _print_status(client, now)
                        if now["status"] in TERMINAL:
                            sys.exit(0 if now["status"] == "done" else 1)
        except httpx.TransportError:
            pass
        time.sleep(0.5)  # the stream was cut: continue after the last event


def _print_status(client: OrdersClient, now: dict[str, Any]) -> None:
    if client.as_json:
        click.echo(json.dumps(now))
    else:
        reason = f"  {escape(now['failure_reason'])}" if now["failure_reason"] else ""
        client.console.print(f"{now['updated_at'][:23]}  {_coloured(now['status'])}{reason}")


COMMANDS = [place, get, watch, cancel, list_]
