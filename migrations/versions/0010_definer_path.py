"""The two functions with their owner's rights look for tables in their own schema first, and in pg_temp last.

PostgreSQL searches a session's temporary tables first, unless the path names pg_temp: a caller's temporary
`outbox_mark` was read instead of ours, by a function that works with the rights of its owner.
"""

from migrations.run_sql import run_sql

revision = "0010"
down_revision = "0009"

SCHEMA = (
    """
-- A caller's temporary tables come last in what runs with the owner's rights.
DO $path$
BEGIN
    EXECUTE format(
        'ALTER FUNCTION outbox_add_partitions(integer) SET search_path = %I, pg_temp',
        (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.oid = 'outbox'::regclass)
    );
END
$path$
""",
)


def upgrade() -> None:
    run_sql(
        *SCHEMA,
        """
        DO $path$
        BEGIN
            EXECUTE format(
                'ALTER FUNCTION inbox_keep(integer) SET search_path = %I, pg_temp',
                (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.oid = 'inbox'::regclass)
            );
        END
        $path$
        """,
    )


def downgrade() -> None:
    run_sql(
        "ALTER FUNCTION inbox_keep(integer) SET search_path FROM CURRENT",
        "ALTER FUNCTION outbox_add_partitions(integer) SET search_path FROM CURRENT",
    )
