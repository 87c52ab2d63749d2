"""What the api asks for: lists of a client's orders, clients and their keys, old idempotency keys.

The lists walk an index from the newest order down, and each has the order's id for its last column, so that a cursor
is a place in it. No index mentions the status: a partial index on it ended every HOT update (docs/decisions.md tells
how orders are listed by status instead). The anonymous client's list walks the primary key, at no cost to an insert.
"""

from migrations.run_sql import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql(
        """
        CREATE INDEX orders_by_client ON orders (client, order_id) WHERE client <> ''
        """,
        """
        CREATE INDEX orders_by_customer ON orders (client, customer_id, order_id) WHERE customer_id IS NOT NULL
        """,
        """
        CREATE INDEX orders_by_reference ON orders (client, reference, order_id) WHERE reference IS NOT NULL
        """,
        """
        -- Where expiry finds the oldest keys; it never looks below the last one that it removed.
        CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at)
        """,
        """
        -- Keys come and go at the same rate: vacuum often and a little, or the table doubles first.
        ALTER TABLE idempotency_keys SET (
            autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000,
            autovacuum_vacuum_cost_delay = 0
        )
        """,
        """
        CREATE TABLE client_keys (
            key_id      text        NOT NULL PRIMARY KEY,              -- the part of an API key that is no secret
            client      text        NOT NULL,
            sha256      bytea       NOT NULL,                          -- of the whole API key, which nobody stores
            created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
            revoked_at  timestamptz,

            CONSTRAINT a_client_has_a_name_and_anonymous_is_nobodys CHECK (char_length(client) BETWEEN 1 AND 64),
            CONSTRAINT a_digest_is_a_sha256 CHECK (octet_length(sha256) = 32)
        )
        """,
        """
        CREATE INDEX client_keys_by_client ON client_keys (client)
        """,
    )


def downgrade() -> None:
    run_sql(
        "DROP TABLE client_keys",
        "ALTER TABLE idempotency_keys RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, "
        "autovacuum_vacuum_cost_delay)",
        "DROP INDEX idempotency_keys_by_age, orders_by_reference, orders_by_customer, orders_by_client",
    )
