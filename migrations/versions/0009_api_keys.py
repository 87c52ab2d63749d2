"""An API key has a name, scopes and an end, and tells when it was last used: a leaked one does less harm, and is found.

Keys that exist keep every right that they had. The code before this revision does not look at the new columns: until
it is replaced, it takes a key as if it had all scopes and no end.
"""

from migrations.run_sql import run_sql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run_sql(
        """
        ALTER TABLE client_keys
            ADD COLUMN name          text        NOT NULL DEFAULT '',  -- for people: who has it, what it is for
            ADD COLUMN scopes        text[]      NOT NULL DEFAULT '{orders:place,orders:read,orders:cancel}',
            ADD COLUMN expires_at    timestamptz,                      -- NULL: never
            ADD COLUMN last_used_at  timestamptz,                      -- to about a minute; NULL: never
            ADD CONSTRAINT a_scope_is_a_known_one
                CHECK (scopes <@ '{orders:place,orders:read,orders:cancel}' AND cardinality(scopes) > 0),
            ADD CONSTRAINT a_key_has_a_short_name CHECK (char_length(name) <= 64)
        """,
    )


def downgrade() -> None:
    run_sql(
        "ALTER TABLE client_keys DROP COLUMN name, DROP COLUMN scopes, DROP COLUMN expires_at, DROP COLUMN last_used_at"
    )
