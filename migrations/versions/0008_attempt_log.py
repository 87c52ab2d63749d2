"""The attempts at an order that did not end in `done` at once, with the order, for operators.

A log line tells of them too, but on one of many machines, and not for long. Statements that write such an end anyway
append to the order's own row: an order that is done at its first attempt has no log and costs nothing more.
"""

from migrations.run_sql import run_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_sql(
        "ALTER TABLE orders ADD COLUMN attempt_log jsonb",
        """
        -- Append an entry to an order's log, and keep the last 20. `started` is null for what is no attempt.
        CREATE FUNCTION log_attempt(
            log jsonb, attempt integer, started timestamptz, outcome text, worker text, error text, reason text,
            next_try timestamptz
        ) RETURNS jsonb LANGUAGE sql VOLATILE AS $function$
            SELECT jsonb_path_query_array(
                coalesce(log, '[]') || jsonb_build_object(
                    'attempt', attempt, 'started', started, 'ended', clock_timestamp(), 'outcome', outcome,
                    'worker', worker, 'error', error, 'reason', reason, 'next_try', next_try
                ),
                '$[last - 19 to last]'
            )
        $function$
        """,
    )


def downgrade() -> None:
    run_sql(
        "DROP FUNCTION log_attempt(jsonb, integer, timestamptz, text, text, text, text, timestamptz)",
        "ALTER TABLE orders DROP COLUMN attempt_log",
    )
