"""A key that waits has a turn, which is new with each change, so that a relay sees what is new and steps over nothing.

Keys that have gone leave dead entries in the indexes as long as an old snapshot is open. A relay remembers up to which
turn it has seen all keys, and from which turn on each route has any; below that it does not look again.

A trigger, since every change has to take a turn: those of an operator, and of a relay of the version before.
"""

from migrations.run_sql import run_sql

revision = "0012"
down_revision = "0011"

SCHEMA = (
    """
-- The turns of the waiting keys: a relay does not look again where it has seen them all.
CREATE SEQUENCE outbox_turn_seq AS bigint CACHE 1
""",
    """
ALTER TABLE outbox_waiting ADD COLUMN turn bigint NOT NULL DEFAULT 0
""",
    """
ALTER SEQUENCE outbox_turn_seq OWNED BY outbox_waiting.turn
""",
    """
-- Each change takes a turn: the key goes behind all others of its route.
CREATE FUNCTION outbox_take_turn() RETURNS trigger LANGUAGE plpgsql AS $function$
BEGIN
    NEW.turn := nextval('outbox_turn_seq');
    RETURN NEW;
END
$function$
""",
    """
CREATE TRIGGER takes_a_turn BEFORE INSERT OR UPDATE ON outbox_waiting
FOR EACH ROW EXECUTE FUNCTION outbox_take_turn()
""",
    """
UPDATE outbox_waiting SET turn = 0
""",
    """
-- What is new since the last look, and the keys of one route.
CREATE INDEX outbox_waiting_turn ON outbox_waiting (turn) WHERE NOT blocked
""",
    """
CREATE INDEX outbox_waiting_route ON outbox_waiting (exchange, routing_key, turn) WHERE NOT blocked
""",
)


def upgrade() -> None:
    run_sql(*SCHEMA)


def downgrade() -> None:
    run_sql(
        "DROP TRIGGER takes_a_turn ON outbox_waiting",
        "DROP FUNCTION outbox_take_turn()",
        "ALTER TABLE outbox_waiting DROP COLUMN turn",
    )
