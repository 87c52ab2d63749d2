"""A process takes every file descriptor that the system lets it have."""

import resource

from orders.runtime import process


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
