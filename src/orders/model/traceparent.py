"""The W3C trace context: an order's request starts or continues it, and each event about the order carries it.

https://www.w3.org/TR/trace-context/#traceparent-header
"""

import re

from orders.model.ids import random_bytes

_VALID = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


def continue_trace(received: str | None) -> str:
    """Return the received `traceparent` if it is valid; otherwise start a new trace, which is not sampled."""
    if received is not None and _VALID(received):
        return received
    new = random_bytes(24).hex()
    return f"00-{new[:32]}-{new[32:]}-00"
