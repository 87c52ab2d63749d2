"""What a handler may say."""

import re
from datetime import timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from orders.handlers import LONGEST_AFTER_SECONDS, Retry, load
from orders.model.errors import StartupError
from orders.model.order import Order


@pytest.mark.parametrize(
    ("after", "seconds"),
    [(None, None), (7, 7), (0.5, 0.5), (-1, 0), (1e13, LONGEST_AFTER_SECONDS)],
)
def test_a_retry_waits_for_a_sensible_time(after: float | None, seconds: float | None) -> None:
    """
    A retry comes now at the earliest, and in 30 days at the latest.
    """
    assert Retry("busy", after=after).after == seconds


@pytest.mark.parametrize("after", ["7", timedelta(seconds=7), float("inf"), float("-inf"), float("nan"), 10**400])
def test_what_is_no_number_of_seconds_is_refused(after: Any) -> None:
    """
    A wrong pause is an error in the handler's own line, not in the worker.
    """
    with pytest.raises((TypeError, ValueError, OverflowError)):
        Retry("busy", after=after)


async def transactional(order: Order, conn: AsyncConnection) -> None:
    """An async handler with a connection."""


def blocking(order: Order) -> None:
    """A plain function."""


def blocking_with_a_connection(order: Order, conn: AsyncConnection) -> None:
    """No thread may use the loop's connection."""


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("transactional", None),
        ("blocking", None),
        ("blocking_with_a_connection", "takes (order, conn), so it has to be async"),
        ("LONGEST_AFTER_SECONDS", "is not a function"),
        ("pytest_asyncio", "has no attribute"),
    ],
)
def test_what_is_a_handler(name: str, complaint: str | None) -> None:
    """
    A function of an order, or an async one of an order and a connection; anything else is refused at start, in a line.
    """
    if complaint is None:
        assert load(f"{__name__}:{name}") is globals()[name]
    else:
        with pytest.raises(StartupError, match=re.escape(complaint)):
            load(f"{__name__}:{name}")
