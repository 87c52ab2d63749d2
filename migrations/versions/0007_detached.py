"""One more table of the outbox: the partitions that the relay is about to drop.

The relay drops only a partition that it has detached itself: a person may have detached another one to archive it. The
bounds are kept here too, for a partition that has to come back: PostgreSQL 19 leaves no CHECK on a detached one.
"""

from migrations.run_sql import run_sql

revision = "0007"
down_revision = "0006"

SCHEMA = (
    """
-- The partitions that the relay detaches, from just before that until it has dropped them or put them back.
CREATE TABLE outbox_detached (
    partition  text        NOT NULL PRIMARY KEY,         -- a table in the schema of the outbox
    low        bigint      NOT NULL,                     -- its ids: from low
    high       bigint      NOT NULL,                     -- up to but not including high
    since      timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT a_partition_has_room_for_ids CHECK (low < high)
)
""",
)


def upgrade() -> None:
    run_sql(*SCHEMA)


def downgrade() -> None:
    run_sql("DROP TABLE outbox_detached")
