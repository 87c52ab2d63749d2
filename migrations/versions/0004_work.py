"""What the worker needs: the event that an order waits for, its retries, its dead letters, and an inbox for consumers.

An order carries the id of the event that asks for its present work. A message with another id is old news, or forged:
it changes nothing. Rows from before this revision have none, and take any.

`worker` of an order being processed is the number whose advisory lock shows that somebody works it; 0 is nobody: it
waits in `retries` or was handed back. A retry waits there and nowhere else, so it holds no connection, no place in a
worker's prefetch and no outbox row, and survives both servers.

`inbox` is partitioned by range of the event id, a UUIDv7 whose first 48 bits are milliseconds: so its primary key can
be the event's, and old days are dropped instead of deleted.
"""

from migrations.run_sql import run_sql

revision = "0004"
down_revision = "0003"

INBOX_FUNCTIONS = (
    """
CREATE FUNCTION uuid7_floor(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $function$
    SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$function$
""",
    """
-- Have a partition for each day from `days` ago to two days ahead, and drop those that are older; return the lower
-- bound of the oldest. An event below it cannot be told from one that was seen: it is refused.
CREATE FUNCTION inbox_keep(days integer) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' AS $function$
DECLARE
    today     date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    day       date;
    partition text;
BEGIN
    PERFORM pg_advisory_xact_lock('inbox'::regclass::oid::integer, -1);
    FOR day IN SELECT generate_series(today - days, today + 2, interval '1 day')::date LOOP
        partition := 'inbox_' || to_char(day, 'YYYYMMDD');
        IF to_regclass(partition) IS NULL THEN
            EXECUTE 'CREATE TABLE ' || partition || ' (LIKE inbox INCLUDING ALL)';
            EXECUTE 'ALTER TABLE inbox ATTACH PARTITION ' || partition || ' FOR VALUES FROM ('
                 || quote_literal(uuid7_floor(day)) || ') TO (' || quote_literal(uuid7_floor(day + 1)) || ')';
        END IF;
    END LOOP;
    FOR partition IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'inbox'::regclass AND c.relname < 'inbox_' || to_char(today - days, 'YYYYMMDD')
    LOOP
        EXECUTE 'DROP TABLE ' || partition;
    END LOOP;
    RETURN uuid7_floor(today - days);
END
$function$
""",
)


def upgrade() -> None:
    run_sql(
        """
        -- event_id:  the event that asks for the present work
        -- redrives:  how often it was brought back from `failed`
        -- placed_at: when it was last placed, on this server's clock
        ALTER TABLE orders
            ADD COLUMN event_id  uuid,
            ADD COLUMN redrives  integer NOT NULL DEFAULT 0,
            ADD COLUMN placed_at timestamptz
        """,
        "ALTER TABLE orders ALTER COLUMN placed_at SET DEFAULT clock_timestamp()",
        """
        CREATE TABLE retries (
            order_id     uuid        NOT NULL PRIMARY KEY,
            due_at       timestamptz NOT NULL,
            event_id     uuid        NOT NULL,
            body         bytea       NOT NULL,                    -- the message as it came, to be sent again
            traceparent  text        NOT NULL
        ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)
        """,
        "CREATE INDEX retries_due ON retries (due_at)",
        """
        -- Why a worker sent a message to the dead letters: the queue between has no room for it that is to be trusted.
        CREATE TABLE verdicts (
            event_id    uuid        NOT NULL PRIMARY KEY,
            reason      text        NOT NULL,
            at          timestamptz NOT NULL DEFAULT clock_timestamp()
        )
        """,
        """
        CREATE TABLE dead_letters (
            id           bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            fingerprint  bytea       NOT NULL UNIQUE,             -- its own event's id, or the body's hash
            order_id     uuid,                                    -- only if the event is one that this order waited for
            event_id     uuid,
            kind         text        NOT NULL,
            reason       text        NOT NULL,
            state        text        NOT NULL DEFAULT 'dead',     -- dead -> redriven | discarded
            arrivals     integer     NOT NULL DEFAULT 1,
            size         integer     NOT NULL DEFAULT 0,          -- of the whole body
            body         bytea,                                   -- at most its first 64 KiB
            died_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
            settled_at   timestamptz,

            CONSTRAINT kind_is_a_known_one
                CHECK (kind IN ('refused', 'exhausted', 'deadly', 'malformed', 'oversized', 'unknown', 'forged',
                                'undeliverable')),
            CONSTRAINT state_is_a_known_one
                CHECK (state IN ('dead', 'redriven', 'discarded')),
            CONSTRAINT a_settled_letter_has_a_time_and_only_then
                CHECK ((state = 'dead') = (settled_at IS NULL)),
            CONSTRAINT a_letter_of_an_order_has_its_event
                CHECK (order_id IS NULL OR event_id IS NOT NULL)
        )
        """,
        "CREATE INDEX dead_letters_dead ON dead_letters (id) WHERE state = 'dead'",
        "CREATE INDEX dead_letters_by_order ON dead_letters (order_id) WHERE order_id IS NOT NULL",
        """
        CREATE TABLE dead_letter_audit (
            id         bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            at         timestamptz NOT NULL DEFAULT clock_timestamp(),
            actor      text        NOT NULL,
            command    text        NOT NULL,
            letter_id  bigint      NOT NULL,
            order_id   uuid,
            event_id   uuid,                                      -- redrive: the event that places the order again
            reason     text        NOT NULL DEFAULT '',

            CONSTRAINT command_is_a_known_one CHECK (command IN ('redrive', 'discard')),
            CONSTRAINT a_discarded_letter_has_a_reason CHECK (command <> 'discard' OR reason <> '')
        )
        """,
        """
        -- Orders that failed before there were dead letters can be brought back too.
        INSERT INTO dead_letters (fingerprint, order_id, event_id, kind, reason, died_at)
        SELECT uuid_send(order_id), order_id, order_id, 'refused', failure_reason, finished_at
        FROM orders WHERE status = 'failed'
        """,
        """
        CREATE TABLE inbox (
            event_id  uuid        NOT NULL,
            consumer  text        NOT NULL,
            at        timestamptz NOT NULL DEFAULT clock_timestamp(),

            PRIMARY KEY (event_id, consumer),
            CONSTRAINT a_consumer_has_a_name CHECK (consumer <> '')
        ) PARTITION BY RANGE (event_id)
        """,
        *INBOX_FUNCTIONS,
        "REVOKE ALL ON FUNCTION inbox_keep(integer) FROM PUBLIC",
        "SELECT inbox_keep(7)",
    )


def downgrade() -> None:
    run_sql(
        "DROP FUNCTION inbox_keep(integer)",
        "DROP TABLE inbox, dead_letter_audit, dead_letters, verdicts, retries",
        "DROP FUNCTION uuid7_floor(timestamptz)",
        "ALTER TABLE orders DROP COLUMN event_id, DROP COLUMN redrives, DROP COLUMN placed_at",
    )
