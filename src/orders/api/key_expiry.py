"""Delete idempotency keys whose retention is over, in small batches above a low-water mark.

Deleted keys leave index entries until a vacuum, and a transaction that holds the xmin horizon delays every vacuum.
The mark lets a batch start behind the entries that earlier batches left, also those of other apis. The first batch of a
process has to pass them all: if it takes too long, the next one looks at half of the time.
"""

import asyncio
from datetime import UTC, datetime, timedelta

from prometheus_client import Counter
from psycopg import AsyncConnection

from orders.database import idempotency_keys_table

BATCH_ROWS = 2000
BUSY_SECONDS = 0.25  # between two full batches: 8,000 keys a second for each api
QUIET_SECONDS = 30.0
LONGEST_SPAN = timedelta(days=36500)
SHORTEST_SPAN = timedelta(seconds=1)  # half of a microsecond would be nothing, and nothing doubled as well

EXPIRED = Counter("orders_idempotency_keys_expired_total", "Idempotency keys whose retention was over")


class KeyExpiry:
    """Owns the low-water mark; `run` is a job of the process's periodic connection."""

    def __init__(self, retention_seconds: float) -> None:
        self.retention = timedelta(seconds=retention_seconds)
        self._mark = datetime(1970, 1, 1, tzinfo=UTC)
        self._span = LONGEST_SPAN
        self._next = 0.0

    def is_due(self) -> bool:
        """Return whether the pause after the last batch is over."""
        return asyncio.get_running_loop().time() >= self._next

    async def run(self, conn: AsyncConnection) -> None:
        """Delete at most BATCH_ROWS keys, unless another api is deleting at this moment."""
        upto, loop = self._mark + self._span, asyncio.get_running_loop()
        # In case that the connection is cut off.
        self._span, self._next = max(self._span / 2, SHORTEST_SPAN), loop.time() + QUIET_SECONDS
        expired = await idempotency_keys_table.expire(conn, self._mark, upto, self.retention, BATCH_ROWS)
        self._span = min(self._span * 4, LONGEST_SPAN)
        EXPIRED.inc(expired.rows)
        self._mark = expired.mark or self._mark
        self._next = loop.time() + (BUSY_SECONDS if expired.more else QUIET_SECONDS)
