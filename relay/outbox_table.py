"""The relay's statements on the outbox: claim, settle, park, block, the low-water mark, and the counts of the backlog.

A function joins the transaction of the connection that it is given. It sets no deadline: its caller does
(`database.deadline`, which also translates psycopg's errors). Ids are of the column `outbox.id`; sizes are in bytes.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, LiteralString, NamedTuple

from psycopg import AsyncClientCursor

from relay.database import Connection, Cursor, DatabaseLost, refuse_read_only
from relay.mark import Holder, Writer
from relay.message import Message, Route

SHARDS = 64
CLOSE = 8  # reading so many rows of the index in sequence costs no more than one search

TAKE_SHARDS: LiteralString = """
    -- In a statement of its own, before the claim: a claim whose snapshot is older than the lock misses what the last
    -- holder parked, and overtakes it. Starts at a shard of the caller's choice and stops when it has enough:
    -- MATERIALIZED, or the planner asks for the locks below the sort, and so for all of them.
    -- The transaction keeps the shards for its claim, which is sent along without waiting for this answer.
    WITH shards AS MATERIALIZED (
        SELECT ($1 + n) % 64 AS shard FROM generate_series(0, 63) AS n ORDER BY n
    ), taken AS MATERIALIZED (
        SELECT shard FROM shards
        WHERE pg_try_advisory_xact_lock('outbox'::regclass::oid::integer, shard)
        LIMIT $2
    )
    SELECT coalesce(array_agg(shard), '{}'), set_config('relay.shards', coalesce(array_agg(shard), '{}')::text, true)
    FROM taken
"""

CLAIM: LiteralString = """
    -- All columns at once: a row is looked up once, not once more by its id. A large body is a pointer up to the last
    -- step, so what the claim leaves for its bytes has not been read.
    WITH head AS MATERIALIZED (
        SELECT id, event_id, key, exchange, routing_key, required, content_type, headers, body, created_at
        FROM outbox
        WHERE state = 'pending' AND id > $1 AND id <= $2
          AND shard = ANY ((SELECT current_setting('relay.shards')::integer[])::integer[])
        ORDER BY id
        LIMIT $3
        FOR UPDATE SKIP LOCKED
    ), sized AS (
        SELECT *, sum(octet_length(body)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS total,
               row_number() OVER (ORDER BY id) AS place
        FROM head
    )
    SELECT id, event_id::text, key, exchange, routing_key, required, content_type, headers::text,
           body, date_part('epoch', created_at), false,
           EXISTS (SELECT FROM outbox_waiting w WHERE w.key = sized.key)
    FROM sized
    WHERE total <= $4 OR place = 1
    ORDER BY id
"""

SESSION: LiteralString = f"""
    -- A stopped relay keeps its connection, and so its locks: let the server end it. The first setting does not help
    -- while a large result is being sent, the second does, and the third ends a relay that was stopped between claims.
    SET idle_in_transaction_session_timeout = '1500ms';
    SET tcp_user_timeout = '1500ms';
    SET idle_session_timeout = '2500ms';
    SET statement_timeout = '4s';
    SET lock_timeout = '2s';
    -- Each statement has to see what was committed before it: a database may have another default.
    SET default_transaction_isolation = 'read committed';
    -- Losing a mark is one repeat; it may not cost a flush for each batch.
    SET synchronous_commit = off;
    -- Plans with the ids in them touch one or two partitions, a generic plan locks all there are.
    SET plan_cache_mode = force_custom_plan;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET jit = off;
    -- A pooler may lend a session that another relay has left.
    DEALLOCATE ALL;
    PREPARE relay_take_shards (integer, integer) AS {TAKE_SHARDS};
    PREPARE relay_claim (bigint, bigint, integer, bigint) AS {CLAIM}
"""

# Each of these is one message to the server. psycopg's pipeline is none: a relay that is stopped before it has sent the
# end of a pipeline is busy for the server, which then ends its session by no timeout, and its locks would stay.
BEGIN_AND_TAKE: LiteralString = """
    BEGIN; EXECUTE relay_take_shards (%(first)s, %(limit)s)
"""

BEGIN_AND_CLAIM: LiteralString = """
    BEGIN; EXECUTE relay_take_shards (%(first)s, %(limit)s);
    EXECUTE relay_claim (%(above)s, %(upto)s, %(rows)s, %(bytes)s)
"""

EXECUTE_CLAIM: LiteralString = "EXECUTE relay_claim (%(above)s, %(upto)s, %(rows)s, %(bytes)s)"

SETTLE: LiteralString = """
    UPDATE outbox SET state = CASE WHEN id = ANY (%(unrouted)s::bigint[]) THEN 'unrouted' ELSE 'sent' END,
                      settled_at = clock_timestamp()
    WHERE id = ANY (%(ids)s::bigint[]) AND id >= %(low)s AND id <= %(high)s AND state IN ('pending', 'parked')
"""

SETTLE_CLOSE: LiteralString = """
    -- The same for ids that lie close together: one scan of the index instead of a search for each id. With `+ 0` the
    -- list is no condition of the index, but a filter that is looked up by its hash.
    UPDATE outbox SET state = CASE WHEN id = ANY (%(unrouted)s::bigint[]) THEN 'unrouted' ELSE 'sent' END,
                      settled_at = clock_timestamp()
    WHERE id >= %(low)s AND id <= %(high)s AND id + 0 = ANY (%(ids)s::bigint[]) AND state IN ('pending', 'parked')
"""

SETTLE_AND_COMMIT: LiteralString = f"{SETTLE}; COMMIT"

SETTLE_CLOSE_AND_COMMIT: LiteralString = f"{SETTLE_CLOSE}; COMMIT"

READ_MARK: LiteralString = """
    SELECT m.mark, s.seqcache, q.last_value - CASE WHEN q.is_called THEN 0 ELSE 1 END
    FROM outbox_mark m, outbox_id_seq q, pg_sequence s
    WHERE s.seqrelid = 'outbox_id_seq'::regclass
"""

LOOK: LiteralString = """
    SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END,
           (SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM outbox_turn_seq),
           extract(epoch FROM clock_timestamp())::float8,
           current_setting('transaction_read_only')::boolean
    FROM outbox_id_seq
"""

BE_PRESENT: LiteralString = """
    -- Held as long as this session can claim; how many hold one is how many share the shards. A relay's first
    -- claimer holds 1001, its others 1002; 1003 is the keeper's of the partitions.
    SELECT pg_try_advisory_lock_shared('outbox'::regclass::oid::integer, %(seat)s)
"""

COUNT_PRESENT: LiteralString = """
    SELECT count(*) FILTER (WHERE objid = 1001), count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND classid = 'outbox'::regclass::oid AND objid IN (1001, 1002) AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

NEW_ROUTES: LiteralString = """
    -- The routes of the keys that took a turn in this range, and the first turn of each.
    SELECT exchange, routing_key, min(turn) FROM outbox_waiting
    WHERE NOT blocked AND turn > %(above)s AND turn <= %(upto)s
    GROUP BY exchange, routing_key
"""

FIRST_TURNS: LiteralString = """
    -- For each route the first turn of a key that waits, none if no key does. Not below the given one: there may lie
    -- the dead entries of all keys that have gone.
    SELECT r.exchange, r.routing_key, (
        SELECT w.turn FROM outbox_waiting w
        WHERE NOT w.blocked AND w.exchange = r.exchange AND w.routing_key = r.routing_key AND w.turn >= r.turn
        ORDER BY w.turn LIMIT 1
    )
    FROM unnest(%(exchanges)s::text[], %(routing_keys)s::text[], %(turns)s::bigint[]) AS r (exchange, routing_key, turn)
"""

CHANGERS: LiteralString = """
    -- Every transaction that may have taken a turn and not committed it, except our own.
    SELECT DISTINCT virtualtransaction FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND relation = 'outbox_waiting'::regclass
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND pid IS DISTINCT FROM pg_backend_pid()
"""

PARKED_DUE: LiteralString = """
    -- The first waiting keys of each route, and the first rows of each key: from its head on, since rows that were
    -- removed leave dead entries of the index.
    SELECT p.id
    FROM unnest(%(exchanges)s::text[], %(routing_keys)s::text[], %(turns)s::bigint[], %(keys)s::int[])
         AS r (exchange, routing_key, turn, keys)
    CROSS JOIN LATERAL (
        SELECT w.key, w.head FROM outbox_waiting w
        WHERE NOT w.blocked AND w.exchange = r.exchange AND w.routing_key = r.routing_key AND w.turn >= r.turn
          AND w.shard = ANY (%(shards)s)
        ORDER BY w.turn LIMIT r.keys
    ) AS k
    CROSS JOIN LATERAL (
        SELECT id FROM outbox_parked WHERE key = k.key AND id >= k.head ORDER BY id LIMIT %(rows_of_key)s
    ) AS p
    ORDER BY p.id
    LIMIT %(rows)s
"""

CLAIM_PARKED: LiteralString = """
    WITH head AS MATERIALIZED (
        SELECT id, octet_length(body) AS bytes
        FROM outbox
        WHERE state = 'parked' AND id = ANY (%(ids)s)
        ORDER BY id
        FOR UPDATE SKIP LOCKED
    ), sized AS (
        SELECT id, sum(bytes) OVER (ORDER BY id) AS total, row_number() OVER (ORDER BY id) AS place FROM head
    )
    SELECT o.id, o.event_id::text, o.key, o.exchange, o.routing_key, o.required, o.content_type, o.headers::text,
           o.body, extract(epoch FROM o.created_at)::float8, true, true
    FROM sized JOIN outbox o ON o.id = sized.id AND o.id = ANY (%(ids)s)
    WHERE sized.total <= %(bytes)s OR sized.place = 1
    ORDER BY o.id
"""

PARK: LiteralString = """
    -- Once for each row: it leaves the poll's index and is claimed through its key from now on.
    WITH parked AS (
        UPDATE outbox SET state = 'parked'
        WHERE id = ANY (%(ids)s) AND id >= %(low)s AND id <= %(high)s AND state = 'pending'
        RETURNING id, shard, key, exchange, routing_key
    ), listed AS (
        INSERT INTO outbox_parked (id, shard, key, exchange, routing_key)
        SELECT id, shard, key, exchange, routing_key FROM parked
    )
    INSERT INTO outbox_waiting AS w (key, shard, head, exchange, routing_key, blocked, reason)
    SELECT DISTINCT ON (key) key, shard, id, exchange, routing_key, false, %(reason)s
    FROM parked ORDER BY key, id
    ON CONFLICT (key) DO UPDATE
        SET head = excluded.head, exchange = excluded.exchange, routing_key = excluded.routing_key
        WHERE excluded.head < w.head
"""

BLOCK: LiteralString = """
    UPDATE outbox_waiting w SET blocked = true, reason = rejected.reason, since = clock_timestamp()
    FROM unnest(%(keys)s::text[], %(reasons)s::text[]) AS rejected (key, reason)
    WHERE w.key = rejected.key
"""

REMOVE: LiteralString = """
    DELETE FROM outbox_parked WHERE id = ANY (%(ids)s)
"""

STOP_WAITING: LiteralString = """
    -- Keys with nothing parked any more wait no longer.
    DELETE FROM outbox_waiting w
    WHERE w.key = ANY (%(keys)s) AND NOT EXISTS (SELECT FROM outbox_parked p WHERE p.key = w.key AND p.id >= w.head)
"""

NEXT_HEAD: LiteralString = """
    UPDATE outbox_waiting w SET head = p.id, exchange = p.exchange, routing_key = p.routing_key
    FROM outbox_waiting AS k
    CROSS JOIN LATERAL (
        SELECT id, exchange, routing_key FROM outbox_parked WHERE key = k.key AND id >= k.head ORDER BY id LIMIT 1
    ) AS p
    WHERE k.key = ANY (%(keys)s) AND w.key = k.key AND w.head <> p.id
"""

WRITERS: LiteralString = """
    -- Every transaction that may have drawn an id and not committed it, except our own. A snapshot knows a transaction
    -- by its oldest xid: the others are those of its savepoints.
    WITH locks AS MATERIALIZED (
        SELECT locktype, virtualtransaction AS name, transactionid AS xid, pid, database, relation, mode
        FROM pg_locks WHERE locktype IN ('relation', 'transactionid') AND granted
    )
    SELECT w.name, (SELECT x.xid::text::bigint FROM locks x
                    WHERE x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND x.name = w.name
                    ORDER BY age(x.xid) DESC LIMIT 1)
    FROM (SELECT DISTINCT name FROM locks
          WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = 'outbox'::regclass
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND pid IS DISTINCT FROM pg_backend_pid()) AS w
"""

STILL_OPEN: LiteralString = """
    -- By this snapshot, not by pg_locks: what a transaction wrote is visible just before it releases its locks.
    SELECT x.xid FROM (
        SELECT xip::text::bigint & 4294967295 AS xid FROM pg_snapshot_xip(pg_current_snapshot()) AS xip
    ) AS x WHERE x.xid = ANY (%(xids)s::bigint[])
"""

HOLDER: LiteralString = """
    SELECT coalesce(a.pid, 0), coalesce(a.application_name, p.gid, ''), p.gid IS NOT NULL,
           extract(epoch FROM coalesce(a.xact_start, p.prepared))::float8
    FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
    WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
      AND l.transactionid::text::bigint = %(xid)s
    LIMIT 1
"""

LOWEST_PENDING: LiteralString = """
    SELECT id FROM outbox WHERE state = 'pending' AND id > %(above)s AND id <= %(upto)s ORDER BY id LIMIT 1
"""

SAVE_MARK: LiteralString = """
    UPDATE outbox_mark SET mark = %(mark)s WHERE mark < %(mark)s
"""

SENTINEL: LiteralString = "SELECT exchange FROM outbox_witness WHERE queue = %(queue)s"

REPLACE_SENTINEL: LiteralString = """
    -- Only the one that was seen: of two relays that replace it at once, one updates no row.
    INSERT INTO outbox_witness AS w (queue, exchange) VALUES (%(queue)s, %(exchange)s)
    ON CONFLICT (queue) DO UPDATE SET exchange = excluded.exchange WHERE w.exchange = %(seen)s
"""

COUNT_PENDING: LiteralString = """
    -- Bounded: what lies beyond the limit is estimated from the ids.
    SELECT count(*), max(id), (extract(epoch FROM clock_timestamp()) - extract(epoch FROM min(created_at)))::float8
    FROM (SELECT id, created_at FROM outbox WHERE state = 'pending' AND id > %(above)s AND id <= %(upto)s
          ORDER BY id LIMIT %(limit)s) AS pending
"""

COUNT_WAITING: LiteralString = """
    -- Of these pages alone, and by no index: rows that have gone stay in both until a vacuum.
    SELECT parked.rows, parked.lowest, waiting.blocked,
           greatest(pg_relation_size('outbox_parked'), pg_relation_size('outbox_waiting'))
               / current_setting('block_size')::integer
    FROM (SELECT count(*) AS rows, min(id + 0) AS lowest FROM outbox_parked
          WHERE ctid >= format('(%%s,0)', %(page)s::bigint)::tid
            AND ctid < format('(%%s,0)', %(page)s::bigint + %(pages)s)::tid) AS parked,
         (SELECT count(*) FILTER (WHERE blocked) AS blocked FROM outbox_waiting
          WHERE ctid >= format('(%%s,0)', %(page)s::bigint)::tid
            AND ctid < format('(%%s,0)', %(page)s::bigint + %(pages)s)::tid) AS waiting
"""

AGE_OF: LiteralString = """
    -- Not of the difference of the two: a writer may have written 'infinity'.
    SELECT (extract(epoch FROM clock_timestamp()) - extract(epoch FROM created_at))::float8
    FROM outbox WHERE id = %(id)s
"""


class SavedMark(NamedTuple):
    """The persisted low-water mark, and the sequence that it belongs to."""

    mark: int  # every row up to this id is settled or parked
    sequence_cache: int  # ids that a session draws at once: has to be 1
    last_id: int  # the last one drawn, 0 if none was


class Present(NamedTuple):
    """Which sessions share the shards at the moment."""

    relays: int
    claimers: int  # of all relays


class Look(NamedTuple):
    """A look at the outbox before a claim."""

    last_id: int  # the last one drawn, 0 if none was
    last_turn: int  # the last one that a waiting key took, 0 if none did
    database_time: float  # seconds since the epoch, by the database's clock


class PendingCount(NamedTuple):
    """The pending rows that were counted."""

    rows: int
    last_id: int | None  # of the last row counted
    oldest_seconds: float | None  # age of the oldest row counted


class WaitingCount(NamedTuple):
    """The parked rows and the blocked keys."""

    parked_rows: int
    blocked_keys: int
    oldest_parked_id: int | None

    def plus(self, more: "WaitingCount") -> "WaitingCount":
        """Return the sum of two counts."""
        ids = [each for each in (self.oldest_parked_id, more.oldest_parked_id) if each is not None]
        rows, keys = self.parked_rows + more.parked_rows, self.blocked_keys + more.blocked_keys
        return WaitingCount(rows, keys, min(ids, default=None))


async def read_mark(conn: Connection) -> SavedMark:
    """Return the persisted mark and the state of the outbox's sequence."""
    cursor = await conn.execute(READ_MARK)
    row = await cursor.fetchone()
    assert row is not None, "outbox_mark has one row: a constraint and the migration say so"
    return SavedMark(*row)


async def be_present(conn: Connection, first: bool) -> None:
    """Count as a claimer that takes its share of the shards, until the connection ends."""
    await conn.execute(BE_PRESENT, {"seat": 1001 if first else 1002})


async def count_present(conn: Connection) -> Present:
    """Return how many relays share the shards, and how many claimers they have together."""
    row = await (await conn.execute(COUNT_PRESENT)).fetchone()
    assert row is not None
    return Present(*row)


async def look(conn: Connection) -> Look:
    """Return the last id drawn, the last turn taken, and the database's time.

    Raises DatabaseLost on a server that was demoted: an idle relay writes nothing, and would not notice otherwise.
    """
    row = await (await conn.execute(LOOK)).fetchone()
    assert row is not None
    last_id, last_turn, database_time, is_read_only = row
    refuse_read_only(is_read_only)
    return Look(last_id, last_turn, database_time)


async def commit(conn: Connection) -> None:
    """Commit what a claiming transaction has recorded."""
    await conn.execute("COMMIT")


async def begin_and_take(conn: Connection, first: int, limit: int) -> list[int]:
    """Begin a claiming transaction; lock up to `limit` shards that no other session holds until it ends, return them.

    `first` (0 to 63) is the shard to begin with.
    """
    cursor = await _execute(conn, BEGIN_AND_TAKE, {"first": first, "limit": limit})
    return await _shards(cursor)


async def begin_and_claim(
    conn: Connection, first: int, limit: int, above: int, upto: int, rows: int, size: int
) -> tuple[list[int], list[Message]]:
    """Do what `begin_and_take` and `claim` do, in one round trip."""
    bounds = {"first": first, "limit": limit, "above": above, "upto": upto, "rows": rows, "bytes": size}
    cursor = await _execute(conn, BEGIN_AND_CLAIM, bounds)
    shards = await _shards(cursor)
    cursor.nextset()
    return shards, [Message(*row) for row in await cursor.fetchall()]


async def claim(conn: Connection, above: int, upto: int, rows: int, size: int) -> list[Message]:
    """Claim pending rows of the shards taken, with ids above `above` and up to `upto`, in order of their ids.

    Return at most `rows` messages whose bodies have at most `size` bytes together, or one message.
    """
    cursor = await _execute(conn, EXECUTE_CLAIM, {"above": above, "upto": upto, "rows": rows, "bytes": size})
    return [Message(*row) for row in await cursor.fetchall()]


async def _shards(cursor: Cursor) -> list[int]:
    cursor.nextset()  # behind BEGIN
    row = await cursor.fetchone()
    assert row is not None
    return list(row[0])


async def _execute(conn: Connection, statements: LiteralString, values: dict[str, Any]) -> Cursor:
    """Send statements as one message, with the values in their text: several statements take no parameters."""
    return await AsyncClientCursor(conn).execute(statements, values)


async def new_routes(conn: Connection, above: int, upto: int) -> dict[Route, int]:
    """Return the routes of the keys that took a turn above `above` and up to `upto`, with the first turn of each."""
    cursor = await conn.execute(NEW_ROUTES, {"above": above, "upto": upto})
    return {Route(exchange, routing_key): turn for exchange, routing_key, turn in await cursor.fetchall()}


async def first_turns(conn: Connection, turns: dict[Route, int]) -> dict[Route, int | None]:
    """Return for each route the first turn, from the given one on, of a key that waits; None if no key does."""
    values = {**_columns(turns), "turns": list(turns.values())}
    cursor = await conn.execute(FIRST_TURNS, values)
    return {Route(exchange, routing_key): turn for exchange, routing_key, turn in await cursor.fetchall()}


async def changers(conn: Connection) -> list[str]:
    """Return the transactions, except our own, that hold a lock to change waiting keys, as pg_locks names them."""
    return [row[0] for row in await (await conn.execute(CHANGERS)).fetchall()]


async def claim_parked(
    conn: Connection,
    shards: list[int],
    allowance: dict[Route, int],
    turns: dict[Route, int],
    of_key: int,
    rows: int,
    size: int,
) -> list[Message]:
    """Claim parked rows in order of their ids, of at most as many keys of each route as `allowance` says.

    `turns`: no key of the route has a turn below this one.

    Return at most `rows` messages, `of_key` of each key, whose bodies have at most `size` bytes together, or one
    message.
    """
    cursor = await conn.execute(
        PARKED_DUE,
        {
            **_columns(allowance),
            "turns": [turns[route] for route in allowance],
            "keys": list(allowance.values()),
            "shards": shards,
            "rows_of_key": of_key,
            "rows": rows,
        },
    )
    ids = [row[0] for row in await cursor.fetchall()]
    if not ids:
        return []
    found = conn.cursor(binary=True)
    await found.execute(CLAIM_PARKED, {"ids": ids, "bytes": size})
    return [Message(*row) for row in await found.fetchall()]


async def settle(conn: Connection, sent: list[int], unrouted: list[int], *, and_commit: bool) -> None:
    """Set the state of these claimed rows, and their time; with `and_commit` commit in the same round trip.

    Raises DatabaseLost if a row is missing: its partition is being detached, although it was requeued meanwhile. The
    relay then claims again, after the keeper has attached the partition.
    """
    ids = sent + unrouted
    low, high = min(ids), max(ids)
    if high - low < CLOSE * len(ids):
        statement = SETTLE_CLOSE_AND_COMMIT if and_commit else SETTLE_CLOSE
    else:
        statement = SETTLE_AND_COMMIT if and_commit else SETTLE
    values = {"ids": _array(ids), "unrouted": _array(unrouted), "low": low, "high": high}
    cursor = await _execute(conn, statement, values)
    if cursor.rowcount != len(ids):
        raise DatabaseLost(f"{cursor.rowcount} of {len(ids)} claimed rows could be settled")


def _array(ids: list[int]) -> str:
    return f"{{{','.join(map(str, ids))}}}"


async def park(conn: Connection, ids: list[int], reason: str) -> None:
    """Park these pending rows: they leave the poll's index, and their keys wait; `reason` is for keys that begin to."""
    await conn.execute(PARK, {"ids": ids, "low": min(ids), "high": max(ids), "reason": reason})


async def block(conn: Connection, reasons: dict[str, str]) -> None:
    """Block these waiting keys (key: reason) until an operator decides."""
    await conn.execute(BLOCK, {"keys": list(reasons), "reasons": list(reasons.values())})


async def remove_parked(conn: Connection, messages: Iterable[Message]) -> None:
    """Remove settled messages from the parked rows; their keys wait for their next row, or no longer."""
    settled = list(messages)
    await remove_parked_rows(conn, ids_of(settled), sorted({message.key for message in settled}))


async def remove_parked_rows(conn: Connection, ids: list[int], keys: list[str]) -> None:
    """Remove these settled rows from the parked rows; `keys` are the keys of the rows."""
    await conn.execute(REMOVE, {"ids": ids})
    await conn.execute(STOP_WAITING, {"keys": keys})
    await conn.execute(NEXT_HEAD, {"keys": keys})


async def writers(conn: Connection) -> list[Writer]:
    """Return the transactions, except our own, that hold a writer's lock on the outbox."""
    return [Writer(*row) for row in await (await conn.execute(WRITERS)).fetchall()]


async def still_open(conn: Connection, xids: Collection[int]) -> set[int]:
    """Return those of these transactions whose rows neither this statement nor an earlier one has seen."""
    return {row[0] for row in await (await conn.execute(STILL_OPEN, {"xids": list(xids)})).fetchall()}


async def holder(conn: Connection, xid: int) -> Holder | None:
    """Return who holds this transaction open; None if it has ended."""
    row = await (await conn.execute(HOLDER, {"xid": xid})).fetchone()
    return None if row is None else Holder(*row)


async def lowest_pending(conn: Connection, above: int, upto: int) -> int | None:
    """Return the lowest pending id above `above` and up to `upto`, None if there is none."""
    row = await (await conn.execute(LOWEST_PENDING, {"above": above, "upto": upto})).fetchone()
    return None if row is None else row[0]


async def save_mark(conn: Connection, mark: int) -> None:
    """Persist the mark, unless a higher one is persisted already."""
    await conn.execute(SAVE_MARK, {"mark": mark})


async def sentinel(conn: Connection, queue: str) -> str | None:
    """Return the exchange that is the queue's sentinel; None if the queue has none."""
    row = await (await conn.execute(SENTINEL, {"queue": queue})).fetchone()
    return None if row is None else row[0]


async def replace_sentinel(conn: Connection, queue: str, seen: str | None, exchange: str) -> bool:
    """Make `exchange` the queue's sentinel in place of `seen`; return False if another relay was faster."""
    return (await conn.execute(REPLACE_SENTINEL, {"queue": queue, "seen": seen, "exchange": exchange})).rowcount == 1


async def count_pending(conn: Connection, above: int, upto: int, limit: int) -> PendingCount:
    """Count pending rows with ids above `above` and up to `upto`, at most `limit` of them."""
    row = await (await conn.execute(COUNT_PENDING, {"above": above, "upto": upto, "limit": limit})).fetchone()
    assert row is not None
    return PendingCount(*row)


async def count_waiting(conn: Connection, page: int, pages: int) -> tuple[WaitingCount, int]:
    """Count parked rows and blocked keys in `pages` pages of their tables from `page` on.

    Return also how many pages the larger table has.
    """
    row = await (await conn.execute(COUNT_WAITING, {"page": page, "pages": pages})).fetchone()
    assert row is not None
    parked_rows, lowest, blocked_keys, all_pages = row
    return WaitingCount(parked_rows, blocked_keys, lowest), all_pages


async def age_of(conn: Connection, row_id: int) -> float | None:
    """Return the age of a row in seconds, by the database's clock; None if there is no such row."""
    row = await (await conn.execute(AGE_OF, {"id": row_id})).fetchone()
    return None if row is None else row[0]


def ids_of(messages: Sequence[Message]) -> list[int]:
    """Return the ids of these messages."""
    return [message.id for message in messages]


def _columns(routes: Iterable[Route]) -> dict[str, list[str]]:
    listed = list(routes)
    return {
        "exchanges": [route.exchange for route in listed],
        "routing_keys": [route.routing_key for route in listed],
    }
