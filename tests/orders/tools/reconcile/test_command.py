"""The options of `orders reconcile` choose orders, bound the list, and are checked."""

from uuid import UUID

import pytest
from psycopg import AsyncConnection

from orders.model.ids import uuid7
from orders.tools.reconcile.command import lines_of_retries
from orders.tools.reconcile.rules import RetryWait
from orders.tools.reconcile.run import ReconcileReport
from tests.orders.planted import plant
from tests.orders.tools.reconcile.conftest import found, reconcile


async def test_a_range_leaves_the_others_alone(database_url: str, conn: AsyncConnection) -> None:
    """
    An order id is a UUIDv7, so a range of time is a range of ids.
    """
    old = UUID(int=uuid7().int - (3 * 86_400_000 << 80))
    await plant(conn, [], status="placed", version=1, order_id=old)
    new = await plant(conn, [], status="placed", version=1)

    _, since = await reconcile(database_url, "--since", "1d")
    _, until = await reconcile(database_url, "--until", "2d")

    assert [("lost", "event_missing", new)] == found(since)
    assert [("lost", "event_missing", old)] == found(until)


async def test_many_findings_are_counted_and_some_are_named(database_url: str, conn: AsyncConnection) -> None:
    """
    The list is bounded, the count is not.
    """
    for _ in range(5):
        await plant(conn, [], status="placed", version=1)

    code, report = await reconcile(database_url, "--limit", "2")

    assert (code, len(report["findings"]), report["counts"]["lost"]) == (1, 2, 5)


async def test_without_a_database_the_answer_is_neither_yes_nor_no(amqp_url: str) -> None:
    """
    Bad settings end with code 2 and one line that names the setting.
    """
    code, report = await reconcile("nonsense")

    assert code == 2
    assert "DATABASE_URL is wrong" in report["error"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--repair"], "AMQP_URL is not set"),
        (["--broker"], "AMQP_URL is not set"),
        (["--since", "soon"], "'soon' is no time"),
        (["--grace", "-1"], "--grace"),
    ],
)
async def test_a_wrong_call_ends_with_2(words: list[str], complaint: str) -> None:
    """
    The line names the option or the setting; nothing is asked of any server.
    """
    code, report = await reconcile("postgresql://nowhere", *words)

    assert code == 2
    assert complaint in report["error"]


def test_orders_that_wait_for_a_retry_are_named() -> None:
    """
    The first ten have a line each, with both times; the others are counted.
    """
    waits = [RetryWait(uuid7(), 0.0, 600.0) for _ in range(12)]
    report = ReconcileReport(since=None, until=None, waiting_for_retry=15, retries=waits)

    lines = list(lines_of_retries(report))

    assert len(lines) == 11
    assert lines[0].endswith(f"{waits[0].order_id}, since 1970-01-01T00:00:00Z, until 1970-01-01T00:10:00Z")
    assert lines[-1] == "waiting for a retry: 5 more orders"
