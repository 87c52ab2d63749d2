"""The deadlines add up to what the api promises while the database is away, and when it is back."""

import re
from itertools import islice

import pytest

from dev.sandbox.nginx import RULES
from orders.database.batcher import Limits
from orders.runtime import timeouts
from orders.runtime.retry_pauses import backoff
from orders.runtime.settings import ApiSettings


def test_an_answer_while_the_database_is_away() -> None:
    """
    A request gives up early enough for its 503 to be there in time, in the api as it is configured by default.
    """
    settings = ApiSettings.read({"DATABASE_URL": "postgresql://"})

    assert settings.orders_patience == timeouts.PATIENCE_SECONDS
    assert timeouts.PATIENCE_SECONDS + 0.6 <= timeouts.PROMISE_SECONDS
    assert timeouts.STATEMENT_SECONDS + timeouts.FIRST_PAUSE_SECONDS + timeouts.HEALTHY_SECONDS <= (
        timeouts.PATIENCE_SECONDS
    ), "who waited for a statement that hung can still be served on another connection"


@pytest.mark.parametrize(
    ("began", "pause"),
    [
        # The last attempt before the return to connect is lost, and ends first.
        (timeouts.CONNECT_SECONDS, timeouts.LONGEST_PAUSE_SECONDS),
        # The outage was short: a statement that it swallowed ends first.
        (Limits().statement_seconds, timeouts.FIRST_PAUSE_SECONDS),
    ],
)
def test_an_order_after_its_return(began: float, pause: float) -> None:
    """
    Whatever had begun when the database came back has ended in time for another attempt.
    """
    assert began + pause + timeouts.HEALTHY_SECONDS <= timeouts.PROMISE_SECONDS


def test_pauses_are_bounded() -> None:
    """
    However long the outage was, no pause between two attempts is longer than the longest, and none is none.
    """
    pauses = list(islice(backoff(), 100))

    assert max(pauses) <= timeouts.LONGEST_PAUSE_SECONDS
    assert min(pauses) > 0


def test_every_server_of_a_cluster_is_asked() -> None:
    """
    Of three servers the last is asked well before the attempt is over, though the others are silent.
    """
    assert 2 * timeouts.HEAD_START_SECONDS + timeouts.HEALTHY_SECONDS < timeouts.CONNECT_SECONDS


def test_nginx_waits_for_the_answer_of_the_api() -> None:
    """
    No deadline of nginx for an answer ends before the api's own.
    """
    rules = (RULES / "locations.conf").read_text()
    seconds = [int(each) for each in re.findall(r"proxy_read_timeout (\d+)s;", rules)]

    assert len(seconds) == rules.count("proxy_pass ")
    assert min(seconds) > timeouts.PROMISE_SECONDS
