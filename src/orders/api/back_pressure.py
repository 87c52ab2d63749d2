"""Refuse placements while the relay cannot publish the events of earlier ones.

Off unless ORDERS_MAX_OUTBOX_AGE is set.
"""

from prometheus_client import Gauge
from psycopg import AsyncConnection

from orders.database.outbox_table import OldestEvent
from orders.model.errors import Overloaded

MEASURE_SECONDS = 0.5

AGE = Gauge("orders_outbox_age_seconds", "Age of the oldest unsent event, while ORDERS_MAX_OUTBOX_AGE is set")


class BackPressure:
    """Compares the age of the oldest unsent event with a limit; `measure` is a job of Periodic."""

    def __init__(self, max_age_seconds: float) -> None:
        self.max_age_seconds = max_age_seconds  # 0: off
        self.outbox_is_old = False
        self._oldest = OldestEvent()

    def is_on(self) -> bool:
        """Return whether there is a limit."""
        return self.max_age_seconds > 0

    def check(self) -> None:
        """Raise Overloaded if the oldest unsent event was too old at the last measurement."""
        if self.outbox_is_old:
            raise Overloaded("The events of earlier orders cannot be delivered at the moment.")

    async def measure(self, conn: AsyncConnection) -> None:
        """Read the age of the oldest unsent event from the database."""
        age = await self._oldest.seconds(conn)
        AGE.set(age)
        self.outbox_is_old = age > self.max_age_seconds
