"""Orders on their way through a worker, made without one."""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

from psycopg import AsyncConnection

from orders.database.claim_orders import Claimed, claim_orders
from orders.database.finish_orders import finish_of, finish_orders
from orders.database.place_orders import Placement, place_orders
from orders.model.traceparent import continue_trace
from orders.model.work_message import WorkMessage
from tests.orders.samples import placement

WORKER = 17


def work_message(placed: Placement) -> WorkMessage:
    """What the event of a placed order asks for."""
    return WorkMessage(placed.order.order_id, placed.event.event_id, 1)


async def work_message_again(conn: AsyncConnection, order_id: UUID) -> WorkMessage:
    """What the event that an order waits for asks for."""
    cursor = await conn.execute("SELECT order_id, event_id, version FROM orders WHERE order_id = %s", [order_id])
    row = await cursor.fetchone()
    assert row is not None
    return WorkMessage(*row)


async def place(conn: AsyncConnection, many: int = 1, *, reference: str | None = None) -> list[Placement]:
    """Place some orders."""
    asked = [placement(reference=reference) for _ in range(many)]
    await place_orders(conn, asked)
    return asked


async def claim(conn: AsyncConnection, placed: Sequence[Placement], worker: int = WORKER) -> list[Claimed]:
    """Claim them all."""
    claims = await claim_orders(conn, worker, [work_message(each) for each in placed])
    assert all(isinstance(each, Claimed) for each in claims)
    return [each for each in claims if isinstance(each, Claimed)]


async def fail(conn: AsyncConnection, claims: Sequence[Claimed], reason: str = "no stock") -> None:
    """Have a handler refuse them."""
    await finish_orders(conn, [finish_of(each, continue_trace(None), reason, "refused") for each in claims])


async def rows(conn: AsyncConnection, statement: LiteralString, *parameters: object) -> list[tuple[object, ...]]:
    """All rows of a query."""
    return await (await conn.execute(statement, parameters)).fetchall()


LETTERS: LiteralString = "SELECT order_id, kind, reason, state, arrivals FROM dead_letters ORDER BY id"
STATUSES: LiteralString = "SELECT status, count(*) FROM orders GROUP BY status"
