"""One more table of the outbox: which exchange is a required queue's witness.

RabbitMQ deletes the witness together with the queue, so a relay that finds it knows that the queue was there all along;
relay/guard.py says how. The relays of one outbox share it by this table, so that a killed one leaves none behind.
"""

from migrations.run_sql import run_sql

revision = "0005"
down_revision = "0004"

SCHEMA = (
    """
-- What proves that a required queue was there all along: the exchange that vanishes with it.
CREATE TABLE outbox_witness (
    queue     text NOT NULL PRIMARY KEY,
    exchange  text NOT NULL
)
""",
)


def upgrade() -> None:
    run_sql(*SCHEMA)


def downgrade() -> None:
    run_sql("DROP TABLE outbox_witness")
