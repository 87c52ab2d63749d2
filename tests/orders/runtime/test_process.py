"""A process takes every file descriptor that the system lets it have; its log lines name the request."""

import logging
import resource

from orders.runtime import process
from orders.runtime.process import REQUEST_ID, LogFormatter


def test_every_descriptor_that_there_is() -> None:
    """
    A soft limit that somebody left low does not limit the streams.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        process.take_all_descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_log_lines_name_the_request() -> None:
    """
    A line written for a request names it; others do not pretend to.
    """
    lines = LogFormatter("%(name)s%(request)s: %(message)s")
    record = logging.makeLogRecord({"name": "orders", "msg": "hello"})
    assert lines.format(record) == "orders: hello"
    token = REQUEST_ID.set("r-1")
    try:
        assert lines.format(record) == "orders [r-1]: hello"
    finally:
        REQUEST_ID.reset(token)
