"""What finds the orders that nothing carries any more, as after the promotion of a standby that lacked a tail.

A standby that replicates asynchronously may lack the newest claims and ends of orders whose messages are acked. All
that it has is older than all that it lacks, so the sweep's own place (`walked`) is never ahead of what it looks at.
"""

from migrations.run_sql import run_sql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run_sql(
        """
        -- Orders that had not ended some minutes after their message was sent: few, mostly in a worker's hands.
        CREATE TABLE stragglers (
            order_id      uuid        NOT NULL PRIMARY KEY,
            row_id        bigint      NOT NULL,                 -- the outbox row of its newest message
            due_at        timestamptz NOT NULL,                 -- if nothing carries it then, its message is sent again
            brought_back  integer     NOT NULL DEFAULT 0        -- how often that happened
        ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)
        """,
        "CREATE INDEX stragglers_due ON stragglers (due_at)",
        """
        -- How far the sweep has come in the outbox, and which history of the server it saw last.
        CREATE TABLE sweep (
            singleton   boolean NOT NULL PRIMARY KEY DEFAULT true,
            walked      bigint  NOT NULL DEFAULT 0,             -- the outbox id up to which it has looked
            system_id   bigint,                                 -- of the server
            timeline    bigint,                                 -- a promotion and a restored backup begin a new one
            changed_at  timestamptz,                            -- when the newest change of the two was noticed

            CONSTRAINT there_is_one_sweep CHECK (singleton),
            CONSTRAINT a_place_is_never_negative CHECK (walked >= 0)
        )
        """,
        "INSERT INTO sweep DEFAULT VALUES",
    )


def downgrade() -> None:
    run_sql("DROP TABLE stragglers, sweep")
