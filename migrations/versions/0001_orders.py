"""Orders, and the idempotency keys that they were placed with.

The lines lie in the order's own row, as JSON: they are written once, read whole and never changed or joined, so one
row for each order makes one insert, one index entry and one read of what a table of lines would make hundreds (a real
invoice has up to 675). `json`, not `jsonb`: it keeps the bytes that the client was answered with.

No index mentions a column that a status change writes, and the pages keep room, so that each change is a HOT update.
"""

from migrations.run_sql import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql(
        """
        CREATE TABLE orders (
            order_id        uuid        NOT NULL PRIMARY KEY,              -- UUIDv7: inserts go to the right edge
            client          text        NOT NULL DEFAULT '',               -- who placed it; '' is anonymous
            status          text        NOT NULL DEFAULT 'placed',         -- placed -> processing -> done | failed
                                                                           -- placed -> cancelled; failed -> placed
            version         integer     NOT NULL DEFAULT 1,                -- raised by every change of status
            attempts        integer     NOT NULL DEFAULT 0,                -- raised by every claim: the worker's fence
            failures        integer     NOT NULL DEFAULT 0,                -- the handler's own failures: its budget
            worker          integer,                                       -- who works it, by its advisory lock
            customer_id     text,
            currency        text,
            lines           json,
            total_minor     bigint,
            reference       text,
            failure_reason  text,
            created_at      timestamptz NOT NULL,
            updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
            finished_at     timestamptz,

            CONSTRAINT status_is_a_known_one
                CHECK (status IN ('placed', 'processing', 'done', 'failed', 'cancelled')),
            CONSTRAINT versions_count_from_one
                CHECK (version >= 1),
            CONSTRAINT attempts_and_failures_count_from_zero
                CHECK (attempts >= 0 AND failures >= 0),
            CONSTRAINT an_order_is_whole_or_has_neither_customer_nor_lines
                CHECK (num_nonnulls(customer_id, currency, lines, total_minor) IN (0, 4)),
            CONSTRAINT a_total_is_never_negative
                CHECK (total_minor >= 0),
            CONSTRAINT an_order_being_processed_has_a_worker_and_only_then
                CHECK ((status = 'processing') = (worker IS NOT NULL)),
            CONSTRAINT a_failed_order_has_a_reason_and_only_then
                CHECK ((status = 'failed') = (failure_reason IS NOT NULL)),
            CONSTRAINT a_finished_order_has_a_time_and_only_then
                CHECK ((status IN ('done', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
        ) WITH (fillfactor = 80)
        """,
        """
        CREATE TABLE idempotency_keys (
            client       text        NOT NULL,
            operation    text        NOT NULL,
            key          text        NOT NULL,
            fingerprint  bytea       NOT NULL,     -- SHA-256 of what was asked, to tell a repeat from a misuse
            order_id     uuid        NOT NULL,
            answer       bytea       NOT NULL,     -- the body of the first answer, sealed
            created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),

            PRIMARY KEY (client, operation, key),
            CONSTRAINT a_key_has_1_to_255_characters CHECK (char_length(key) BETWEEN 1 AND 255),
            CONSTRAINT a_fingerprint_is_a_sha256 CHECK (octet_length(fingerprint) = 32)
        )
        """,
    )


def downgrade() -> None:
    run_sql("DROP TABLE idempotency_keys", "DROP TABLE orders")
