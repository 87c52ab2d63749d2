"""PostgreSQL: connections, batches, one module for each table and one for each transition of an order.

Connections and batches:

postgres                connections with a deadline for every call; checks at start
session_probe           proves at a start that a connection is a session of its own
severing                ends a call by shutting its socket down, and bounds what that leaves in the server
session                 a connection for one task, replaced whenever it is lost
periodic                recurring jobs that share one connection
notify                  notifies the relay of new outbox rows
worker_lock             the advisory lock that shows a worker alive
batcher                 many callers, one statement
server_state            connections that are taken, commits that wait for a standby
roles                   lets the roles of the processes log in
errors                  what a database error means: the class of its SQLSTATE
row_locks               orders that another session has locked: skipped, paused, made visible
pg_arrays               arrays as parameters of a batch statement

Tables, with their columns and the statements that belong to no transition:

orders_table            orders; look-ups and lists
outbox_table            events, for the relay
idempotency_keys_table  the first use of each Idempotency-Key
api_keys_table          the clients' API keys
retries_table           messages of orders that wait for a retry
stragglers_table        orders that are late, and the sweep that finds those that nothing carries
dead_letters_table      dead letters, poison marks and the operators' audit; fails the order of a dead letter
attempt_log             the column of orders that tells how attempts ended; any transition appends to it
inbox                   the events that a subscriber has seen

Transitions of an order; one that has an event writes it in the same transaction:

place_orders            -> placed
cancel_orders           placed -> cancelled
claim_orders            placed -> processing
finish_orders           processing -> done | failed
postpone_orders         processing, and waits for a retry
redrive_orders          failed -> placed
resend_messages         the same status, and its message again
purge_orders            deletes or anonymises orders that ended long ago

Batches of the api:

reads                   orders, API keys and steps down a list

`tests/orders/database/test_table_owners.py` holds who may name a table. Statements are constants. One that needs
the columns or the INSERT of another table contains the constant of that table's module.
"""
