#!/usr/bin/env bash
# Software: RabbitMQ 3.10.8 (Erlang 25.2.3), classic and quorum queues; client aiormq 7.2.4. RabbitMQ 4.0.5 gave
# the same output.
#
# Expected: a `message-ttl` policy acts on the messages that are in the queue already, as a `max-length`
# policy does at once. The guide to TTL says so: such a queue discards them when they reach its head, and
# does not give them to consumers.
#
# Instead: a message gets its time of expiry when it enters the queue. Those from before the policy never
# expire: they stay without an end and consumers get them. While one of them is at the head, those that
# came under the policy do not leave the queue or reach its dead letter exchange either. They expire in
# place, are still counted, and go when a consumer has taken the old ones.
#
# Why it matters: a TTL is set on a backlog to shed it, and this one keeps growing. A rehearsal with an
# empty queue works. It is so the other way round too: to take the policy away, or to lengthen it, does not
# save what came under it.
#
# Output (read long after the policy's time):
#   classic  empty queue, policy, 3 messages  counts 0, a consumer is given: nothing
#   classic  3 old, policy, 3 messages        counts 6, a consumer is given: old old old
#   classic  3 messages, policy taken away    counts 0, a consumer is given: nothing
#   quorum   empty queue, policy, 3 messages  counts 0, a consumer is given: nothing
#   quorum   3 old, policy, 3 messages        counts 6, a consumer is given: old old old
#   quorum   3 messages, policy taken away    counts 0, a consumer is given: nothing
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
    "$work/debian/usr/bin/epmd" -port "$epmd" -kill >/dev/null 2>&1 || true
  fi
  rm -rf "$work"
}
trap stop EXIT

packages=(rabbitmq-server=3.10.8-1.1+deb12u1)
for part in base asn1 crypto eldap ftp inets mnesia os-mon parsetools public-key runtime-tools snmp ssl \
  syntax-tools tftp tools xmerl; do
  packages+=("erlang-$part=1:25.2.3+dfsg-1+deb12u4")
done
mkdir debs debian
(cd debs && timeout 200 apt-get download -qq "${packages[@]}" 2>/dev/null)
for deb in debs/*.deb; do dpkg-deb -x "$deb" debian; done
sed -i "s#ROOTDIR=/usr/lib/erlang#ROOTDIR=$work/debian/usr/lib/erlang#" debian/usr/lib/erlang/bin/erl
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
env PATH="$work/debian/usr/lib/erlang/bin:$PATH" HOME="$work" RABBITMQ_NODENAME="$node" \
  RABBITMQ_CONFIG_FILE="$work/rabbitmq.conf" RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_MNESIA_BASE="$work/db" \
  RABBITMQ_LOG_BASE="$work/log" RABBITMQ_ENABLED_PLUGINS_FILE="$work/plugins" RABBITMQ_PID_FILE="$work/pid" \
  RABBITMQ_DIST_PORT="$dist" ERL_EPMD_PORT="$epmd" ERL_EPMD_ADDRESS=127.0.0.1 \
  debian/usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server >boot.log 2>&1 &
for _ in $(seq 90); do
  if grep -q 'completed with' boot.log; then break; fi
  sleep 1
done

ctl=(env PATH="$work/debian/usr/lib/erlang/bin:$PATH" HOME="$work" ERL_EPMD_PORT="$epmd"
  RABBITMQ_CONF_ENV_FILE=/dev/null "$work/debian/usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmqctl" -q -n "$node")

timeout 150 venv/bin/python - "$amqp" "${ctl[@]}" <<'PY'
import asyncio
import subprocess
import sys

import aiormq

PORT, *CTL = sys.argv[1:]


def rabbitmqctl(*words):
    subprocess.run([*CTL, *words], check=True, timeout=30)


async def count(channel, queue):
    return (await channel.queue_declare(queue, passive=True)).message_count


async def look(connection, kind, case, label, before):
    queue = f"{kind}.{case}"
    channel = await connection.channel(publisher_confirms=True)
    await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})

    async def publish(body, number):
        for _ in range(number):
            await channel.basic_publish(body, routing_key=queue)

    await publish(b"old", before)
    milliseconds = 15_000 if case == "lifted" else 1000
    rabbitmqctl("set_policy", queue, f"^{queue}$", f'{{"message-ttl": {milliseconds}}}')
    await asyncio.sleep(1)
    await publish(b"new", 3)
    if case == "lifted":
        rabbitmqctl("clear_policy", queue)
        if await count(channel, queue) != 3:
            sys.exit("this machine is too slow: the messages expired before the policy was gone")
    await asyncio.sleep(milliseconds / 1000 + 4)
    counted = await count(channel, queue)
    given = []

    async def take(message):
        given.append(message.body.decode())
        await channel.basic_ack(message.delivery.delivery_tag)

    await channel.basic_consume(queue, take)
    await asyncio.sleep(2)
    words = " ".join(given) or "nothing"
    print(f"{kind:8} {label:32} counts {counted}, a consumer is given: {words}")
    return counted, words


async def main():
    connection = await aiormq.connect(f"amqp://guest:guest@127.0.0.1:{PORT}/")
    for kind in "classic", "quorum":
        seen = [
            await look(connection, kind, "empty", "empty queue, policy, 3 messages", 0),
            await look(connection, kind, "backlog", "3 old, policy, 3 messages", 3),
            await look(connection, kind, "lifted", "3 messages, policy taken away", 0),
        ]
        if seen != [(0, "nothing"), (6, "old old old"), (0, "nothing")]:
            sys.exit("changed: a message-ttl policy treats the messages before it otherwise")
    await connection.close()


asyncio.run(main())
PY
