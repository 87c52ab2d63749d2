"""What PostgreSQL says of itself: the connections that are taken, and the commits that wait for a standby."""

from datetime import datetime
from typing import LiteralString, NamedTuple

from psycopg import AsyncConnection

# A role that is no member of pg_monitor sees the waits of its own sessions only.
READ: LiteralString = """
    SELECT count(*) FILTER (WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'),
           current_setting('max_connections')::integer,
           current_setting('synchronous_standby_names'),
           count(*) FILTER (WHERE wait_event = 'SyncRep'),
           min(query_start) FILTER (WHERE wait_event = 'SyncRep'),
           coalesce(extract(epoch FROM clock_timestamp() - min(query_start) FILTER (WHERE wait_event = 'SyncRep')), 0)
               ::float8,
           (SELECT string_agg(rolname, ', ' ORDER BY rolname) FROM pg_roles r
             WHERE rolname LIKE 'orders\\_%' AND rolconnlimit > 0
               AND rolconnlimit <= (SELECT count(*) FROM pg_stat_activity b WHERE b.usesysid = r.oid))
    FROM pg_stat_activity
"""


class ServerState(NamedTuple):
    """The connections that are taken, of how many, by which roles, and what commits wait for."""

    taken: int
    max_connections: int
    standbys: str  # synchronous_standby_names
    waiting_commits: int
    waiting_since: datetime | None
    waiting_seconds: float
    roles_at_limit: str | None  # that have all the connections that they may have


async def read(conn: AsyncConnection) -> ServerState:
    """Return the state at this moment."""
    row = await (await conn.execute(READ)).fetchone()
    assert row is not None
    return ServerState(*row)
