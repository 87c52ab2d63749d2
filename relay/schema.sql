-- The outbox: the one table that a service shares with the relay. docs/relay.md is its manual.

CREATE SEQUENCE outbox_id_seq AS bigint CACHE 1;

CREATE TABLE outbox (
    id            bigint      NOT NULL PRIMARY KEY DEFAULT nextval('outbox_id_seq'),
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at    timestamptz,                           -- when the row was sent, found unrouted, or skipped
    event_id      uuid        NOT NULL,                  -- becomes the message id
    shard         smallint    NOT NULL GENERATED ALWAYS AS ((hashtextextended(key, 0) & 63)::smallint) STORED,
    required      boolean     NOT NULL,                  -- true: it has to reach a queue
    state         text        NOT NULL DEFAULT 'pending', -- pending -> sent | unrouted | parked
                                                         -- parked -> sent | unrouted | skipped; sent -> parked
    key           text        NOT NULL,                  -- events of one key keep their order
    exchange      text        NOT NULL,
    routing_key   text        NOT NULL,
    content_type  text        NOT NULL,
    headers       jsonb       NOT NULL DEFAULT '{}',
    body          bytea       NOT NULL,                  -- sealed: carried as it is

    CONSTRAINT state_is_a_known_one
        CHECK (state IN ('pending', 'parked', 'sent', 'unrouted', 'skipped')),
    CONSTRAINT a_settled_row_has_a_time_and_only_then
        CHECK ((state IN ('pending', 'parked')) = (settled_at IS NULL)),
    CONSTRAINT a_required_row_is_never_unrouted
        CHECK (NOT (required AND state = 'unrouted')),
    CONSTRAINT a_key_has_1_to_255_characters
        CHECK (char_length(key) BETWEEN 1 AND 255),
    CONSTRAINT an_exchange_has_at_most_127_bytes
        CHECK (octet_length(exchange) <= 127),
    CONSTRAINT a_routing_key_has_at_most_255_bytes
        CHECK (octet_length(routing_key) <= 255),
    CONSTRAINT a_content_type_has_at_most_255_bytes
        CHECK (octet_length(content_type) <= 255),
    CONSTRAINT headers_are_a_json_object
        CHECK (jsonb_typeof(headers) = 'object')
) PARTITION BY RANGE (id);

ALTER SEQUENCE outbox_id_seq OWNED BY outbox.id;

-- What the poll reads, in the order of the ids and only above the mark.
CREATE INDEX outbox_pending ON outbox (id) WHERE state = 'pending';

-- The rows that wait, in the order in which their key's events have to appear.
CREATE TABLE outbox_parked (
    id           bigint   NOT NULL PRIMARY KEY,
    shard        smallint NOT NULL,
    key          text     NOT NULL,
    exchange     text     NOT NULL,
    routing_key  text     NOT NULL
);

CREATE INDEX outbox_parked_by_key ON outbox_parked (key, id);

-- The keys that wait: each has a parked row, the first of which is its head.
CREATE TABLE outbox_waiting (
    key          text        NOT NULL PRIMARY KEY,
    shard        smallint    NOT NULL,
    head         bigint      NOT NULL,
    exchange     text        NOT NULL,                   -- where the head goes: a failure closes a route
    routing_key  text        NOT NULL,
    blocked      boolean     NOT NULL,                   -- true: its head was rejected; an operator decides
    reason       text        NOT NULL,
    since        timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT a_blocked_key_has_a_reason CHECK (NOT blocked OR reason <> '')
);

-- The keys that may be tried again, oldest first within each route. Blocked keys are not in it, however many they are.
CREATE INDEX outbox_waiting_open ON outbox_waiting (exchange, routing_key, head) WHERE NOT blocked;

CREATE INDEX outbox_waiting_blocked ON outbox_waiting (head) WHERE blocked;

-- Every id up to the mark is settled or parked, or will never exist.
CREATE TABLE outbox_mark (
    singleton       boolean NOT NULL PRIMARY KEY DEFAULT true,
    mark            bigint  NOT NULL DEFAULT 0,
    partition_rows  bigint  NOT NULL DEFAULT 1000000,    -- the size of the partitions to come

    CONSTRAINT there_is_one_mark CHECK (singleton),
    CONSTRAINT a_mark_is_never_negative CHECK (mark >= 0),
    CONSTRAINT a_partition_has_room_for_rows CHECK (partition_rows > 0)
);

INSERT INTO outbox_mark DEFAULT VALUES;

-- What operators did, and why.
CREATE TABLE outbox_audit (
    id       bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor    text        NOT NULL,
    command  text        NOT NULL,                       -- retry, skip, requeue
    key      text,
    row_id   bigint,
    rows     bigint      NOT NULL,
    reason   text        NOT NULL DEFAULT '',

    CONSTRAINT command_is_a_known_one CHECK (command IN ('retry', 'skip', 'requeue')),
    CONSTRAINT a_skipped_row_has_a_reason CHECK (command <> 'skip' OR (row_id IS NOT NULL AND reason <> ''))
);

-- Make partitions until `ahead` of them lie above the one that takes the next row; return how many were made.
-- ATTACH takes a weaker lock on the outbox than CREATE TABLE .. PARTITION OF: writers go on meanwhile.
-- It runs with its owner's rights, so that a writer that may only insert can still help itself.
CREATE FUNCTION outbox_add_partitions(ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $function$
DECLARE
    rows_each bigint;
    newest    bigint;
    lower_id  bigint;
    made      integer := 0;
    partition text;
BEGIN
    PERFORM pg_advisory_xact_lock('outbox'::regclass::oid::integer, -1);
    SELECT partition_rows INTO STRICT rows_each FROM outbox_mark;
    SELECT last_value INTO STRICT newest FROM outbox_id_seq;
    SELECT coalesce(max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO [(]''([0-9]+)''[)]')::bigint), 1)
      INTO STRICT lower_id
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'outbox'::regclass;
    WHILE lower_id <= newest + ahead * rows_each LOOP
        partition := 'outbox_from_' || lower_id;
        EXECUTE 'CREATE TABLE ' || partition || ' (LIKE outbox INCLUDING ALL) WITH ('
             || 'autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, '
             || 'autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000, '
             || 'vacuum_truncate = false)';
        EXECUTE 'ALTER TABLE outbox ATTACH PARTITION ' || partition
             || ' FOR VALUES FROM (' || lower_id || ') TO (' || lower_id + rows_each || ')';
        lower_id := lower_id + rows_each;
        made := made + 1;
    END LOOP;
    RETURN made;
END
$function$;

REVOKE ALL ON FUNCTION outbox_add_partitions(integer) FROM PUBLIC;

SELECT outbox_add_partitions(10);

-- What proves that a required queue was there all along: the exchange that vanishes with it.
CREATE TABLE outbox_witness (
    queue     text NOT NULL PRIMARY KEY,
    exchange  text NOT NULL
);

-- The partitions that the relay detaches, from just before that until it has dropped them or put them back.
CREATE TABLE outbox_detached (
    partition  text        NOT NULL PRIMARY KEY,         -- a table in the schema of the outbox
    low        bigint      NOT NULL,                     -- its ids: from low
    high       bigint      NOT NULL,                     -- up to but not including high
    since      timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT a_partition_has_room_for_ids CHECK (low < high)
);

-- A caller's temporary tables come last in what runs with the owner's rights.
DO $path$
BEGIN
    EXECUTE format(
        'ALTER FUNCTION outbox_add_partitions(integer) SET search_path = %I, pg_temp',
        (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.oid = 'outbox'::regclass)
    );
END
$path$;

-- The turns of the waiting keys: a relay does not look again where it has seen them all.
CREATE SEQUENCE outbox_turn_seq AS bigint CACHE 1;

ALTER TABLE outbox_waiting ADD COLUMN turn bigint NOT NULL DEFAULT 0;

ALTER SEQUENCE outbox_turn_seq OWNED BY outbox_waiting.turn;

-- Each change takes a turn: the key goes behind all others of its route.
CREATE FUNCTION outbox_take_turn() RETURNS trigger LANGUAGE plpgsql AS $function$
BEGIN
    NEW.turn := nextval('outbox_turn_seq');
    RETURN NEW;
END
$function$;

CREATE TRIGGER takes_a_turn BEFORE INSERT OR UPDATE ON outbox_waiting
FOR EACH ROW EXECUTE FUNCTION outbox_take_turn();

UPDATE outbox_waiting SET turn = 0;

-- What is new since the last look, and the keys of one route.
CREATE INDEX outbox_waiting_turn ON outbox_waiting (turn) WHERE NOT blocked;

CREATE INDEX outbox_waiting_route ON outbox_waiting (exchange, routing_key, turn) WHERE NOT blocked;
