"""Refuse placements while the events of earlier ones cannot leave: off unless ORDERS_MAX_OUTBOX_AGE is set."""

from prometheus_client import Gauge
from psycopg import AsyncConnection

from orders.database import outbox_table
from orders.model.errors import Overloaded

LOOK_SECONDS = 0.5

AGE = Gauge("orders_outbox_age_seconds", "Age of the oldest unsent event, while ORDERS_MAX_OUTBOX_AGE is set")


class BackPressure:
    """Knows the age of the oldest unsent event; `look` is a job of the process's periodic connection."""

    def __init__(self, most_seconds: float) -> None:
        self.most_seconds = most_seconds  # 0: off
        self.is_high = False

    def is_on(self) -> bool:
        """Say whether there is a limit at all."""
        return self.most_seconds > 0

    def check(self) -> None:
        """Raise Overloaded while the oldest event is too old."""
        if self.is_high:
            raise Overloaded("The events of earlier orders cannot be delivered at the moment.")

    async def look(self, conn: AsyncConnection) -> None:
        """Ask how old the oldest unsent event is."""
        age = await outbox_table.oldest_seconds(conn)
        AGE.set(age)
        self.is_high = age > self.most_seconds
