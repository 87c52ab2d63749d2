"""What pgbench runs is our own statement: the limit it shows is ours."""

import asyncio
import re
from pathlib import Path

from psycopg import AsyncConnection

from dev.bench import limits, pgbench
from dev.sandbox import packages
from orders.database.place_orders import PLACE
from tests.orders.samples import counts

ROWS = 64


def test_the_script_is_the_statement() -> None:
    """
    Nothing but the parameters stands otherwise in the script than in PLACE, and the ids are new in each call.
    """
    values = re.fullmatch("(.+?)".join(map(re.escape, PLACE.split("%b"))) + ";\n", limits.script(ROWS), re.DOTALL)

    assert values is not None
    given = dict(zip(limits.columns(), values.groups(), strict=True))
    assert {name for name, value in given.items() if "gen_random_uuid()" in value} == {"order_id", "event_id"}
    assert all(value == f":{name}" for name, value in given.items() if name not in limits.IDS)


async def test_each_call_places_a_batch(database_url: str, conn: AsyncConnection, tmp_path: Path) -> None:
    """
    Every call writes all of its orders, each with its event.
    """
    packages.ensure(["postgres"])
    script = tmp_path / "place.sql"
    script.write_text(limits.script(ROWS))
    values = await limits.batch(database_url, ROWS)

    await asyncio.to_thread(pgbench.run, database_url, script, clients=2, calls=3, values=values)

    assert await counts(conn) == (6 * ROWS, 6 * ROWS, 0)
