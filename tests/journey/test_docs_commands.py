"""The pages for users are right: each console block runs on one system, which the README's own commands start.

A block that cannot run has the line `<!-- not run: REASON -->` before it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from dev.sandbox.process import ROOT

PAGES = ("README.md", "docs/api.md", "docs/worker.md", "docs/relay.md")
BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
CONSOLE = {"sh", "console", "http"}
OTHER = {"python", "text"}
SOME_ID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b")
FILES = ("Makefile", "pyproject.toml", "requirements-dev.lock", "alembic.ini")
FOLDERS = ("migrations", "dev", "src", "relay", "deploy")
SECONDS = 150.0  # of a block on a busy machine
# A person looks again if the line is not in the log yet.
LOOK_AGAIN = 'grep() { until command grep "$@"; do sleep 0.2; done; }\n'


class Block(msgspec.Struct, frozen=True):
    page: str
    reason: str | None
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    return [
        Block(page, found["reason"], found["language"], found["text"])
        for found in BLOCK.finditer((ROOT / page).read_text())
    ]


class Clone:
    """A folder in which a reader of the pages types: the files of this repository, and `shop.py` of the README."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in FILES:
            shutil.copy2(ROOT / name, folder / name)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        environment = folder / ".venv"
        environment.mkdir()
        for entry in Path(sys.prefix).iterdir():
            if not entry.name.startswith(".made"):
                (environment / entry.name).symlink_to(entry)
        (environment / ".made").touch()  # the newest file here: `make` installs nothing
        [shop] = [block.text for block in blocks("README.md") if block.text.startswith("# shop.py\n")]
        (folder / "shop.py").write_text(shop)
        self.environ = {
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, script: str, **environ: str) -> str:
        """Run a script in a shell that ends at the first command that fails; return the output."""
        done = subprocess.run(
            ["bash", "-euc", f"set -o pipefail\n{LOOK_AGAIN}{script}"],
            cwd=self.folder,
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    @property
    def http(self) -> httpx.Client:
        addresses = dict(line.split("=", 1) for line in (self.folder / ".run" / "env").read_text().splitlines())
        return httpx.Client(base_url=addresses["BASE_URL"], trust_env=False, timeout=30)

    def ends_as(self, order_id: str, status: str) -> None:
        """Wait until the order has this status."""
        end = time.monotonic() + 60
        with self.http as client:
            while (order := client.get(f"/orders/{order_id}").json())["status"] != status:
                assert time.monotonic() < end, order
                time.sleep(0.2)

    def orders(self) -> list[dict[str, Any]]:
        with self.http as client:
            listed: list[dict[str, Any]] = client.get("/orders").json()["orders"]
        return listed

    def newest(self, _: object) -> str:
        """Return the id of the newest order, for which an id on a page stands."""
        return str(self.orders()[0]["order_id"])

    def place(self, currency: str) -> str:
        order = {
            "customer_id": "17850",
            "currency": currency,
            "lines": [{"sku": "85123A", "quantity": 1, "unit_price_minor": 255}],
        }
        with self.http as client:
            return str(client.post("/orders", json=order).json()["order_id"])


@pytest.fixture
def clone() -> Iterator[Clone]:
    """A clone in a folder that nginx, which runs as another user, can pass through."""
    with tempfile.TemporaryDirectory(prefix="docs-") as name:
        Path(name).chmod(0o711)
        yield Clone(Path(name))


def run_dead_letter_commands(clone: Clone, block: Block) -> None:
    """Run each command of the block on an order that the handler refuses, as often as it is redriven."""
    order_id = clone.place("EUR")
    for line in block.text.splitlines():
        clone.ends_as(order_id, "failed")
        clone.run(re.sub(r"\bID\b", order_id, line.removeprefix("$ "), count=1))


def commands(block: Block) -> list[str]:
    """Return the commands of a block one by one; all as one if a later one needs variables of an earlier one."""
    return [block.text] if block.text.startswith(". ") else block.text.splitlines()


def send(clone: Clone, block: Block) -> None:
    """Send the request of an http block."""
    head, _, body = block.text.partition("\n\n")
    request, *headers = head.splitlines()
    method, path = request.split()
    with clone.http as client:
        answer = client.request(
            method, path, content=body.encode(), headers=dict(header.split(": ", 1) for header in headers)
        )
    assert answer.is_success, answer.text


def test_each_block_has_a_language_and_a_reason_if_it_does_not_run() -> None:
    """
    Each block of the pages is one of a console, or one of another language; only those of a console have a reason.
    """
    found = [block for page in PAGES for block in blocks(page)]

    assert [block for block in found if block.language not in CONSOLE | OTHER] == []
    assert [block for block in found if block.reason and block.language not in CONSOLE] == []
    assert sum(page.count("\n<!-- not run") for page in map(Path.read_text, map(ROOT.joinpath, PAGES))) == sum(
        block.reason is not None for block in found
    )


@pytest.mark.long
def test_each_console_block_works(clone: Clone, database_url: str, amqp_url: str) -> None:
    """
    Every command on the pages succeeds, in the order of the pages, and no order that they place fails by itself.
    """
    runnable = [block for page in PAGES for block in blocks(page) if block.language in CONSOLE and not block.reason]
    first, *others = runnable
    assert first.text.startswith("ORDERS_HANDLER=shop:handle make up")
    start, end = first.text.split("make down")  # the others need the system
    try:
        clone.run(start, DATABASE_URL=database_url, AMQP_URL=amqp_url, SERVERS="env")
        for block in others:
            if "orders dead" in block.text:
                for order in clone.orders():
                    clone.ends_as(order["order_id"], "done")
                run_dead_letter_commands(clone, block)
            elif block.language == "http":
                send(clone, block)
            else:
                for command in commands(block):
                    clone.run(SOME_ID.sub(clone.newest, command))
    finally:
        clone.run(f"make down{end}")


async def test_the_workers_example_takes_orders_without_a_total() -> None:
    """
    The first handler of docs/worker.md charges what an order costs, and finishes one that has no lines.
    """
    charged = []

    class Card:
        declined = busy = False

        async def charge(self, amount: int, idempotency_key: str) -> "Card":
            assert isinstance(amount, int)
            charged.append(amount)
            return self

    class Order(msgspec.Struct):
        total_minor: int | None
        idempotency_key: str = "key"

    [example] = [block.text for block in blocks("docs/worker.md") if block.text.startswith("# shop/work.py\n")]
    module: dict[str, Any] = {"card": Card()}
    exec(example, module)
    for total in (None, 255):
        await module["handle"](Order(total))

    assert charged == [255]
