#!/usr/bin/env bash
# Software: aiormq 7.2.4 against RabbitMQ 3.10.8 (Erlang 25.2.3).
#
# Expected: a connection that the broker refuses with a reason raises AMQPConnectionError (a
# ConnectionError, so an OSError), with the broker's words. A wrong password does.
#
# Instead: for a virtual host that is missing, RabbitMQ closes the connection with 530 and says which
# one. aiormq was waiting for connection.open-ok, drops code and text, and raises InvalidFrameError: no
# AMQPConnectionError, no OSError, and with the address of an object in place of a reason, so that each
# attempt has another text.
#
# Why it matters: a loop that reconnects on connection errors ends here instead, after a restore or a
# vhost that is made late. A log that tells repeated reasons from new ones sees a new one each time, and
# the operator is never told the name that is wrong.
#
# Output:
#   wrong password: ProbableAuthenticationError, AMQPConnectionError: True, OSError: True, says "ACCESS_REFUSED": True
#   missing vhost:  InvalidFrameError, AMQPConnectionError: False, OSError: False, says "not found": False
#   broker's log:   vhost shop not found
set -euo pipefail

work=$(mktemp -d)
chmod 755 "$work"
cd "$work"
node="finding$$@localhost"
stop() {
  if [ -f "$work/pid" ]; then
    broker=$(cat "$work/pid")
    kill "$broker" || true
    timeout 30 tail --pid="$broker" -f /dev/null || kill -9 "$broker" || true
    "$work/root/usr/bin/epmd" -port "$epmd" -kill >/dev/null 2>&1 || true
  fi
  rm -rf "$work"
}
trap stop EXIT

packages=(rabbitmq-server=3.10.8-1.1+deb12u1)
for part in base asn1 crypto eldap ftp inets mnesia os-mon parsetools public-key runtime-tools snmp ssl \
  syntax-tools tftp tools xmerl; do
  packages+=("erlang-$part=1:25.2.3+dfsg-1+deb12u4")
done
mkdir debs root
(cd debs && timeout 200 apt-get download -qq "${packages[@]}" 2>/dev/null)
for deb in debs/*.deb; do dpkg-deb -x "$deb" root; done
sed -i "s#ROOTDIR=/usr/lib/erlang#ROOTDIR=$work/root/usr/lib/erlang#" root/usr/lib/erlang/bin/erl
python3 -m venv venv
timeout 200 venv/bin/pip install -q --disable-pip-version-check --no-deps \
  aiormq==7.2.4 pamqp==4.0.1 yarl==1.25.1 idna==3.20 multidict==7.2.1 propcache==0.5.4

# shellcheck disable=SC2046
set -- $(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))')
amqp=$1 dist=$2 epmd=$3
printf 'listeners.tcp.1 = 127.0.0.1:%s\nlog.console = false\n' "$amqp" >rabbitmq.conf
echo '[].' >plugins
env PATH="$work/root/usr/lib/erlang/bin:$PATH" HOME="$work" RABBITMQ_NODENAME="$node" \
  RABBITMQ_CONFIG_FILE="$work/rabbitmq.conf" RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_MNESIA_BASE="$work/db" \
  RABBITMQ_LOG_BASE="$work/log" RABBITMQ_ENABLED_PLUGINS_FILE="$work/plugins" RABBITMQ_PID_FILE="$work/pid" \
  RABBITMQ_DIST_PORT="$dist" ERL_EPMD_PORT="$epmd" ERL_EPMD_ADDRESS=127.0.0.1 \
  root/usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server >boot.log 2>&1 &
for _ in $(seq 90); do
  if grep -q 'completed with' boot.log; then break; fi
  sleep 1
done

timeout 60 venv/bin/python - "$amqp" <<'PY'
import asyncio
import sys

import aiormq
from aiormq.exceptions import AMQPConnectionError


async def refused(label, credentials, vhost, words):
    url = f"amqp://{credentials}@127.0.0.1:{sys.argv[1]}/{vhost}"
    try:
        async with asyncio.timeout(20):
            await aiormq.connect(url)
    except Exception as error:
        seen = isinstance(error, AMQPConnectionError), isinstance(error, OSError), words in str(error)
        print(
            f"{label:15} {type(error).__name__}, AMQPConnectionError: {seen[0]}, OSError: {seen[1]}, "
            f'says "{words}": {seen[2]}'
        )
        return seen
    sys.exit(f"changed: {label} is no longer refused")


async def main():
    password = await refused("wrong password:", "guest:wrong", "", "ACCESS_REFUSED")
    vhost = await refused("missing vhost:", "guest:guest", "shop", "not found")
    if (password, vhost) != ((True, True, True), (False, False, False)):
        sys.exit("changed: aiormq reports a missing virtual host otherwise")


asyncio.run(main())
PY
for _ in $(seq 20); do
  if grep -rq 'vhost shop' log; then break; fi
  sleep 0.5
done
echo "broker's log:   $(grep -rho 'vhost shop.*' log | head -1)"
