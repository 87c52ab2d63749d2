"""The traceback of a handler's failure is in the log, once for each kind and minute."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import pytest

from orders.model.ids import uuid7
from orders.work import failure_log
from orders.work.failure_log import FailureLog, kind_of


def refuse(message: str) -> None:
    raise KeyError(message)


def refuse_elsewhere() -> None:
    raise KeyError("of another line")


def fail(raising: Callable[[], None]) -> Exception:
    with pytest.raises(KeyError) as caught:
        raising()
    return caught.value


async def test_the_first_of_a_kind_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """
    Of a hundred failures at one line one traceback is logged, whatever their messages; another line has its own.
    """
    failures = FailureLog()
    for number in range(100):
        failures.add(uuid7(), fail(partial(refuse, f"order {number}")))
    failures.add(uuid7(), fail(refuse_elsewhere))

    traces = [record for record in caplog.records if record.exc_info]
    assert len(traces) == 2
    assert "order 0" in caplog.text
    assert "raise KeyError(message)" in caplog.text

    failures.close()
    assert caplog.messages[-1].startswith("99 more runs of the handler failed with KeyError at ")


async def test_after_a_minute_the_count_and_the_next_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The minute ends with a line that counts the others; the next failure has its traceback again.
    """
    monkeypatch.setattr(failure_log, "QUIET_SECONDS", 0.05)
    failures = FailureLog()
    for _ in range(3):
        failures.add(uuid7(), fail(lambda: refuse("again")))
    await asyncio.sleep(0.2)
    assert caplog.messages[-1].startswith("2 more runs of the handler failed with KeyError")

    failures.add(uuid7(), fail(lambda: refuse("again")))

    assert [bool(record.exc_info) for record in caplog.records] == [True, False, True]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_an_error_that_was_never_raised_has_no_line() -> None:
    """
    A traceback may be missing, as where a handler removes it.
    """
    assert kind_of(KeyError("x")) == (KeyError, "", 0)
