"""A role for each process, so that a hole in one of them is not the whole database.

`grant_roles` makes the roles that are missing and grants what each needs; it may be run again at any time, as after a
restore without privileges. A later revision that adds a table grants its own. Roles belong to the whole server: several
databases share them, and no downgrade drops them. They cannot log in until `orders roles` lets them.

The relay's role owns the outbox, since only an owner may detach partitions, and `outbox_add_partitions`, since that
makes them. The owner of the other tables becomes its member, so a role that ran everything until now still does. An
outbox that belonged to another role than the other tables stays as it is.
"""

from migrations.run_sql import run_sql

revision = "0013"
down_revision = "0012"

GRANT_ROLES = """
CREATE FUNCTION grant_roles() RETURNS void LANGUAGE plpgsql AS $function$
DECLARE
    place    text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'orders'::regclass);
    owner    text := (SELECT relowner::regrole FROM pg_class WHERE oid = 'orders'::regclass);
    name     text;
    missing  text;
BEGIN
    FOREACH name IN ARRAY '{orders_api, orders_worker, orders_relay, orders_operator, orders_read}'::text[] LOOP
        IF to_regrole(name) IS NULL THEN
            BEGIN
                EXECUTE 'CREATE ROLE ' || name || ' NOLOGIN';
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL;  -- another database's migration was quicker
                WHEN insufficient_privilege THEN missing := concat_ws(', ', missing, name);
            END;
        END IF;
    END LOOP;
    IF missing IS NOT NULL THEN
        RAISE WARNING 'roles are missing and % may not create them (%), so nothing is granted, and it goes on running '
            'every process: run `orders roles` as an administrator', current_user, missing;
        RETURN;
    END IF;

    EXECUTE format(
        'GRANT USAGE ON SCHEMA %s TO orders_api, orders_worker, orders_relay, orders_operator, orders_read', place
    );

    BEGIN
        -- What each may do with the outbox, which it shares with the relay.
        GRANT INSERT (event_id, key, exchange, routing_key, required, content_type, headers, body)
            ON outbox TO orders_api, orders_worker, orders_operator;
        GRANT USAGE ON SEQUENCE outbox_id_seq TO orders_api, orders_worker, orders_operator;
        GRANT USAGE ON SEQUENCE outbox_turn_seq TO orders_operator;
        GRANT EXECUTE ON FUNCTION outbox_add_partitions(integer) TO orders_api, orders_worker, orders_operator;
        GRANT SELECT ON outbox TO orders_api, orders_worker, orders_operator, orders_read;
        GRANT SELECT ON outbox_mark TO orders_api, orders_worker, orders_read;
        GRANT SELECT ON outbox_waiting TO orders_api, orders_worker, orders_operator, orders_read;
        GRANT SELECT ON outbox_parked TO orders_worker, orders_operator, orders_read;
        GRANT SELECT ON outbox_audit TO orders_operator, orders_read;
        GRANT SELECT ON outbox_witness, outbox_detached TO orders_read;
        GRANT SELECT ON SEQUENCE outbox_id_seq TO orders_operator, orders_read;
        GRANT SELECT ON SEQUENCE outbox_turn_seq TO orders_read;
        GRANT INSERT (actor, command, key, row_id, rows, reason) ON outbox_audit TO orders_worker, orders_operator;
        GRANT UPDATE (rows) ON outbox_audit TO orders_operator;
        GRANT UPDATE (state, settled_at) ON outbox TO orders_operator;
        GRANT INSERT ON outbox_parked TO orders_operator;
        GRANT INSERT, UPDATE ON outbox_waiting TO orders_operator;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE WARNING 'the outbox belongs to another role, which alone may use it (%): run `orders roles` '
            'as an administrator', SQLERRM;
    END;

    GRANT SELECT ON orders TO orders_api, orders_worker, orders_operator, orders_read;
    GRANT INSERT ON orders TO orders_api;
    GRANT UPDATE (status, version, updated_at, finished_at) ON orders TO orders_api;
    GRANT UPDATE (status, version, attempts, failures, worker, failure_reason, updated_at, finished_at, attempt_log)
        ON orders TO orders_worker;
    GRANT UPDATE (status, version, failures, failure_reason, event_id, redrives, placed_at, updated_at, finished_at,
                  attempt_log, customer_id, reference)
        ON orders TO orders_operator;
    GRANT DELETE ON orders TO orders_operator;

    GRANT SELECT, INSERT, DELETE, UPDATE (created_at) ON idempotency_keys TO orders_api;  -- UPDATE: to lock rows
    GRANT SELECT, DELETE, UPDATE (created_at) ON idempotency_keys TO orders_operator;
    GRANT SELECT ON idempotency_keys TO orders_read;

    GRANT SELECT, UPDATE (last_used_at) ON client_keys TO orders_api;
    GRANT SELECT, INSERT, UPDATE (revoked_at, expires_at) ON client_keys TO orders_operator;
    GRANT SELECT (key_id, client, name, scopes, created_at, expires_at, last_used_at, revoked_at)
        ON client_keys TO orders_read;

    GRANT SELECT, INSERT, UPDATE, DELETE ON retries, stragglers TO orders_worker;
    GRANT SELECT, INSERT, DELETE ON verdicts TO orders_worker;
    GRANT SELECT, INSERT, UPDATE (arrivals) ON dead_letters TO orders_worker;
    GRANT SELECT, UPDATE ON sweep TO orders_worker;
    GRANT SELECT ON retries, stragglers, sweep, dead_letters, dead_letter_audit TO orders_operator, orders_read;
    GRANT SELECT ON verdicts TO orders_read;
    GRANT UPDATE (state, settled_at) ON dead_letters TO orders_operator;
    GRANT INSERT ON dead_letter_audit TO orders_operator;

    GRANT SELECT ON inbox TO orders_read;

    BEGIN
        EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %s IN SCHEMA %s GRANT SELECT ON TABLES TO orders_read',
                       owner, place);
        IF (SELECT relowner::regrole::text FROM pg_class WHERE oid = 'outbox'::regclass) = owner THEN
            -- Inherits its rights, or is a superuser.
            IF NOT pg_has_role(owner::regrole, 'orders_relay', 'USAGE') THEN
                EXECUTE format('GRANT orders_relay TO %s', owner);
            END IF;
            IF NOT pg_has_role(owner::regrole, 'orders_relay', 'USAGE') THEN
                RAISE insufficient_privilege USING MESSAGE = owner || ' does not inherit the rights of its roles';
            END IF;
            EXECUTE format('GRANT CREATE ON SCHEMA %s TO orders_relay', place);
            FOR name IN
                SELECT c.oid::regclass FROM pg_class c
                WHERE c.relnamespace = place::regnamespace AND c.relkind IN ('r', 'p') AND c.relowner = owner::regrole
                  AND c.relname ~ '^outbox($|_(parked|waiting|mark|audit|witness|detached)$|_from_[0-9]+$)'
                ORDER BY c.relkind = 'r', c.relname
            LOOP
                EXECUTE format('ALTER TABLE %s OWNER TO orders_relay', name);
            END LOOP;
            ALTER FUNCTION outbox_add_partitions(integer) OWNER TO orders_relay;
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE WARNING 'the outbox stays with %, who has to run the relay (%): run `orders roles` as an administrator',
            owner, SQLERRM;
    END;
END
$function$
"""

# In the schema of the tables, as inbox_keep is; the caller's own rights count.
PATH = """
DO $path$
BEGIN
    EXECUTE format(
        'ALTER FUNCTION grant_roles() SET search_path = %I, pg_temp',
        (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.oid = 'orders'::regclass)
    );
END
$path$
"""

REVOKE_ROLES = """
DO $revoke$
DECLARE
    place  text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'orders'::regclass);
    owner  text := (SELECT relowner::regrole FROM pg_class WHERE oid = 'orders'::regclass);
    name   text;
BEGIN
    FOR name IN
        SELECT c.oid::regclass FROM pg_class c
        WHERE c.relnamespace = place::regnamespace AND c.relkind IN ('r', 'p') AND c.relname ~ '^outbox'
          AND c.relowner = to_regrole('orders_relay')
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %s', name, owner);
    END LOOP;
    IF (SELECT proowner FROM pg_proc WHERE oid = 'outbox_add_partitions(integer)'::regprocedure)
        = to_regrole('orders_relay')
    THEN
        EXECUTE format('ALTER FUNCTION outbox_add_partitions(integer) OWNER TO %s', owner);
    END IF;
    FOREACH name IN ARRAY '{orders_api, orders_worker, orders_relay, orders_operator, orders_read}'::text[] LOOP
        IF to_regrole(name) IS NOT NULL THEN
            EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %s FROM %s', place, name);
            EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA %s FROM %s', place, name);
            EXECUTE format('REVOKE ALL ON FUNCTION outbox_add_partitions(integer) FROM %s', name);
            EXECUTE format('REVOKE ALL ON SCHEMA %s FROM %s', place, name);
            EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %s IN SCHEMA %s REVOKE ALL ON TABLES FROM %s',
                           owner, place, name);
        END IF;
    END LOOP;
END
$revoke$
"""


def upgrade() -> None:
    run_sql(GRANT_ROLES, PATH, "SELECT grant_roles()")


def downgrade() -> None:
    run_sql(REVOKE_ROLES, "DROP FUNCTION grant_roles()")
