"""An effect of the handler, as it lies on disk."""

import msgspec

FAILS_FIRST = "fails until it is redriven"  # the reference by which an order asks the handler for it


class Effect(msgspec.Struct, frozen=True):
    """What one run of the handler did. Its key is the order: a repeat of it is the same effect."""

    order_id: str
    version: int
    attempt: int
    total_minor: int
    process: str
    at: float
