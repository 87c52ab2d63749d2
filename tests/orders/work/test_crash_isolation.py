"""Suspects run in a child process, and only what dies alone is poison."""

import asyncio
from typing import Any

import pytest
from psycopg import AsyncConnection

from orders.model.traceparent import continue_trace
from orders.work.crash_isolation import CrashIsolation, halves
from orders.work.runner import ChildDied, HandlerFailed, HandlerRefused, Job, RunOutcome, Succeeded
from tests.orders.work_samples import claim, place

TIMEOUT = 2.0


@pytest.fixture
def child_settings(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """What a child process finds in its environment: its parent's."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("AMQP_URL", "amqp://nobody@127.0.0.1:1/")
    monkeypatch.setenv("ORDERS_HANDLER", "tests.orders.work_handlers:obey")
    monkeypatch.setenv("WORK_TIMEOUT", str(TIMEOUT))


async def jobs(conn: AsyncConnection, references: list[str]) -> list[Job]:
    placed = [each for reference in references for each in await place(conn, reference=reference)]
    return [Job(claimed, continue_trace(None)) for claimed in await claim(conn, placed)]


async def outcomes(conn: AsyncConnection, references: list[str]) -> list[RunOutcome]:
    """Run one order of each reference, all of them suspects."""
    by_reference: dict[str | None, RunOutcome] = {}
    async with CrashIsolation(timeout=TIMEOUT) as isolation:
        asked = await jobs(conn, references)
        for job, outcome in zip(asked, await asyncio.gather(*map(isolation, asked)), strict=True):
            by_reference[job.claimed.order.reference] = outcome
    return [by_reference[reference] for reference in references]


async def test_neighbours_of_a_deadly_order(conn: AsyncConnection, child_settings: None) -> None:
    """
    Of many suspects only the deadly one is convicted; the others have their own outcome, as if nothing had been.
    """
    references = ["refuse", "exit", "retry", "print", *(f"good {number}" for number in range(20))]

    refused, deadly, again, *good = await outcomes(conn, references)

    assert refused == HandlerRefused("no stock")
    assert deadly == ChildDied("the process that ran it alone exited with code 7, 2 times")
    assert again == HandlerFailed("busy", 7, "Retry")
    assert good == [Succeeded()] * 21


@pytest.mark.long
async def test_order_that_blocks_its_process(conn: AsyncConnection, child_settings: None) -> None:
    """
    A handler that never gives the loop back is killed with its process, and found.
    """
    blocking, good = await outcomes(conn, ["block", "good"])

    assert isinstance(blocking, ChildDied)
    assert "no sign of life" in blocking.reason
    assert good == Succeeded()


async def test_innocent_suspect(conn: AsyncConnection, child_settings: None) -> None:
    """
    An order that was only near when a worker died is done.
    """
    assert await outcomes(conn, ["good"]) == [Succeeded()]


async def test_suspect_whose_handler_is_cancelled(conn: AsyncConnection, child_settings: None) -> None:
    """
    A cancellation that ends the handler is an answer like any other, not a child that fell silent.
    """
    outcome = HandlerFailed("something that the handler waited for was cancelled", error="CancelledError")

    assert await outcomes(conn, ["be cancelled"]) == [outcome]


@pytest.mark.parametrize(
    ("group", "parts"), [("a", ["a"]), ("ab", ["a", "b"]), ("abc", ["a", "bc"]), ("abcdef", ["abc", "def"])]
)
def test_the_guilty_one_is_in_one_of_the_halves(group: str, parts: list[str]) -> None:
    """
    A group is halved, each of it is in one part, and who is alone stays alone.
    """
    assert halves(group) == parts


async def test_no_child_can_be_started(
    conn: AsyncConnection, child_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A machine that has no process left to give is a transient failure: the suspects wait until there is one.
    """
    start, refusals = asyncio.create_subprocess_exec, iter([BlockingIOError("no more processes")])

    async def start_later(*command: str, **how: Any) -> asyncio.subprocess.Process:
        for refusal in refusals:
            raise refusal
        return await start(*command, **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_later)

    assert await outcomes(conn, ["good"]) == [Succeeded()]
    assert list(refusals) == []
