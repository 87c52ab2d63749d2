"""What reads cost an api, beside a handler that does nothing: `make bench ONLY=reads`.

wrk with 100 connections sends GETs through nginx to three apis, of one order after the other; relay and worker are
stopped. An order has two lines, and a page 50 such orders. A stream is that of a cancelled order, and ends with its
first event.

The do-nothing handler is a GET of our uvicorn, Litestar and nginx, whose answer is as long as the order. What counts is
the CPU time of the api for a request.
"""

import os
import tempfile
from functools import partial
from pathlib import Path

import httpx

from dev.bench.measurement import Bench
from dev.bench.placing import APIS, CONNECTIONS, Contender, drive, nothing, ours
from dev.bench.record import Figures
from dev.sandbox import packages

ORDER = {
    "customer_id": "17850",
    "currency": "GBP",
    "reference": "536365",
    "lines": [
        {"sku": "85123A", "description": "WHITE HANGING HEART T-LIGHT HOLDER", "quantity": 6, "unit_price_minor": 255},
        {"sku": "71053", "description": "WHITE METAL LANTERN", "quantity": 6, "unit_price_minor": 339},
    ],
}
ORDERS = 300  # more than are asked for at a time
PAGE = 50
NOTHING = "do-nothing handler"
API, API_OF_NOTHING = "cpu_us_orders.app", "cpu_us_dev.bench.nothing"


def measure(bench: Bench) -> None:
    """Measure, and compare."""
    packages.ensure(["nginx", "wrk"])
    seconds = int(os.environ.get("SECONDS", "8" if bench.full else "3"))
    rounds = int(os.environ.get("ROUNDS", "9" if bench.full else "5"))
    bench.settings(seconds=seconds, rounds=rounds, connections=CONNECTIONS, apis=APIS)
    with tempfile.TemporaryDirectory(prefix="reads-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with ours(bench.servers, folder / "ours") as mine, nothing(folder / "nothing") as least:
            ids = orders(mine.url)
            one = tuple(f"/orders/{order_id}" for order_id in ids)
            sides = [
                Contender(NOTHING, least.url, with_body=False, paths=one),
                Contender("order", mine.url, with_body=False, paths=one),
                Contender(f"page of {PAGE}", mine.url, with_body=False, paths=(f"/orders?limit={PAGE}",)),
                Contender("stream", mine.url, with_body=False, paths=tuple(f"{path}/events" for path in one)),
            ]
            for side in sides:
                drive(side, 2)  # warm
            bench.compare("reads", {side.name: partial(read, side, seconds) for side in sides}, rounds)
    for side in sides[1:]:
        target = "at most 1.5" if side.name == "order" else ""
        bench.ratio(f"{side.name} / {NOTHING}, CPU time of the api", "reads", "api_us", side.name, NOTHING, target)


def orders(url: str) -> list[str]:
    """Place orders and cancel them; return their ids."""
    with httpx.Client(trust_env=False) as client:
        ids = [client.post(url, json=ORDER).raise_for_status().json()["order_id"] for _ in range(ORDERS)]
        for order_id in ids:
            client.post(f"{url}/{order_id}/cancel").raise_for_status()
    return ids


def read(side: Contender, seconds: int) -> Figures:
    """Drive a side; tell what its api spends on a request."""
    figures = drive(side, seconds)
    assert figures["refused"] == 0
    return {**figures, "api_us": figures[API if side.name != NOTHING else API_OF_NOTHING]}
