"""What failed can be listed, shown, brought back once, and discarded; each change is audited."""

import asyncio
import json
import os
import re
import sys
import time
from pathlib import Path

import msgspec
import pytest
from psycopg import AsyncConnection

from orders.database.claim_orders import Claimed, claim_orders
from orders.database.dead_letters_table import DeadLetter, store
from orders.database.redrive_orders import Redrive, redrive_orders
from orders.model import events
from orders.model.work_message import WorkMessage
from tests import warm
from tests.orders.work_samples import STATUSES, WORKER, claim, fail, place, rows


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)


class Result(msgspec.Struct):
    """What a command said, and how it ended."""

    exit_code: int | None
    output: str


async def dead(*words: str) -> Result:
    """Run `orders dead ...` in a process of its own."""
    command = [sys.executable, "-m", "orders.cli", "dead", *words]
    done = await asyncio.to_thread(warm.run, command, env=os.environ)
    return Result(done.returncode, done.stdout + done.stderr)


async def fail_some(conn: AsyncConnection, many: int, reason: str = "no stock") -> None:
    await fail(conn, await claim(conn, await place(conn, many)), reason)


@pytest.mark.parametrize("words", [["dead", "list"], ["clients", "list"], ["reconcile"]])
async def test_the_addresses_of_make_up(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """
    In the folder of `make up` a command on the database needs no setting, as `orders get` needs none.
    """
    monkeypatch.delenv("DATABASE_URL", raising=False)
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "env").write_text(f"DATABASE_URL={database_url}\n")
    environ = os.environ | {"PYTHONPATH": ":".join(path for path in sys.path if path)}

    done = await asyncio.to_thread(warm.run, [sys.executable, "-m", "orders.cli", *words], cwd=tmp_path, env=environ)

    assert done.returncode == 0, done.stderr


async def test_letters_are_listed_by_reason(conn: AsyncConnection, environment: None) -> None:
    """
    The list counts letters by reason, and says how many can be brought back.
    """
    await fail_some(conn, 3)
    await fail_some(conn, 2, "card declined")
    await store(conn, [DeadLetter(b"garbage", 7)])

    everything, some = await dead("list"), await dead("list", "--reason", "CARD", "--json")

    lines = [line.split() for line in everything.output.splitlines()[1:]]
    assert [(line[0], line[1], line[4]) for line in lines[:3]] == [
        ("3", "3", "refused"), ("2", "2", "refused"), ("1", "0", "malformed"),
    ]  # fmt: skip
    assert lines[3] == ["6", "5", "in", "all"]
    assert json.loads(some.output)["reason"] == "card declined"


async def test_redrive_goes_the_whole_way_again(conn: AsyncConnection, environment: None) -> None:
    """
    A redriven order is placed again under a new event and version, without its failures, and can be claimed by that.
    """
    [placed] = await place(conn)
    await fail(conn, await claim(conn, [placed]))

    result = await dead("redrive", "--id", str(placed.order.order_id), "--why", "restocked")

    assert (result.exit_code, result.output) == (0, "redriven: 1\n")
    assert await rows(conn, "SELECT status, version, failures, failure_reason, redrives FROM orders") == [
        ("placed", 4, 0, None, 1)
    ]
    [(body, required)] = await rows(conn, "SELECT body, required FROM outbox WHERE routing_key = 'order.redriven'")
    assert required is True
    assert isinstance(body, bytes)
    event = events.open_envelope(body)
    assert (event.data.status, event.data.version) == ("placed", 4)
    [(actor, command, event_id, why)] = await rows(
        conn, "SELECT actor, command, event_id, reason FROM dead_letter_audit"
    )
    assert re.fullmatch(r"\S+@\S+ as orders", str(actor))
    assert (command, event_id, why) == ("redrive", event.id, "restocked")
    [claimed] = await claim_orders(conn, WORKER, [WorkMessage(event.data.order_id, event.id, event.data.version)])
    assert isinstance(claimed, Claimed)


async def test_repeated_redrives_have_one_effect(conn: AsyncConnection, environment: None) -> None:
    """
    Two redrives at once, and a third later, place the order again once.
    """
    await fail_some(conn, 20)

    both = await asyncio.gather(dead("redrive", "--all"), dead("redrive", "--all"))
    third = await dead("redrive", "--all")

    assert sum(int(each.output.split()[1]) for each in both) == 20
    assert third.output == "redriven: 0\n"
    assert await rows(conn, "SELECT count(*), max(redrives) FROM orders") == [(20, 1)]
    assert await rows(conn, "SELECT count(*) FROM outbox WHERE routing_key = 'order.redriven'") == [(20,)]
    assert await rows(conn, "SELECT count(*) FROM dead_letter_audit") == [(20,)]


async def test_redrive_by_reason_dry_run_and_rate(conn: AsyncConnection, environment: None) -> None:
    """
    A dry run changes nothing; a reason chooses; a rate is kept.
    """
    await fail_some(conn, 30)
    await fail_some(conn, 5, "card declined")

    dry = await dead("redrive", "--all", "--dry-run")
    assert dry.output == "would redrive: 35\n"
    assert await rows(conn, STATUSES) == [("failed", 35)]

    started = time.monotonic()
    result = await dead("redrive", "--reason", "stock", "--rate", "50")
    assert result.output == "redriven: 30\n"
    assert 0.5 < time.monotonic() - started < 5
    assert sorted(await rows(conn, STATUSES)) == [("failed", 5), ("placed", 30)]


async def test_garbage_can_only_be_discarded(conn: AsyncConnection, environment: None) -> None:
    """
    A letter without an order is left alone by a redrive, shown as it is, and settled by a discard with its reason.
    """
    await store(conn, [DeadLetter(b"\xffgarbage", 8)])

    left = await dead("redrive", "--id", "1")
    shown = json.loads((await dead("show", "1")).output)
    discarded = await dead("discard", "1", "--reason", "a test's")
    again = await dead("discard", "1", "--reason", "a test's")

    assert left.exit_code == 1
    assert "left alone" in left.output
    assert (shown["kind"], shown["body"], shown["order_id"]) == ("malformed", "\N{REPLACEMENT CHARACTER}garbage", None)
    assert (discarded.exit_code, again.exit_code) == (0, 1)
    audit = json.loads((await dead("show", "1")).output)["audit"]
    assert [(each["command"], each["reason"]) for each in audit] == [("discard", "a test's")]
    assert (await dead("list")).output == "no dead letters\n"


async def test_redriven_order_that_fails_again(conn: AsyncConnection, environment: None) -> None:
    """
    Each life leaves a letter of its own; the next redrive is of the last one.
    """
    [placed] = await place(conn)
    await fail(conn, await claim(conn, [placed]))
    assert await redrive_orders(conn, Redrive("test"), [1]) == [1]
    [(body,)] = await rows(conn, "SELECT body FROM outbox WHERE routing_key = 'order.redriven'")
    assert isinstance(body, bytes)
    event = events.open_envelope(body)
    [claimed] = await claim_orders(conn, WORKER, [WorkMessage(event.data.order_id, event.id, event.data.version)])
    assert isinstance(claimed, Claimed)
    await fail(conn, [claimed], "still no stock")

    assert await redrive_orders(conn, Redrive("test"), [1]) == []
    assert (await dead("redrive", "--all")).output == "redriven: 1\n"
    assert await rows(conn, "SELECT redrives FROM orders") == [(2,)]


@pytest.mark.parametrize("words", [(), ("--all", "--id", "1"), ("--reason", "x", "--all")])
async def test_redrive_wants_one_choice(environment: None, words: tuple[str, ...]) -> None:
    """
    Nothing is brought back by a command that does not say what.
    """
    result = await dead("redrive", *words)
    assert result.exit_code == 2
