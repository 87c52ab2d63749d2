#!/usr/bin/env bash
# Software: RabbitMQ 3.10.8 (Erlang 25.2.3), quorum queue with x-single-active-consumer; client aiormq 7.2.4.
#
# Expected: a single active consumer that leaves in good order (basic.cancel, finish the messages in hand,
# acknowledge, close) hands over at least as safely as one that is killed.
#
# Instead: the queue makes the next consumer active at the cancel, not when the first has acknowledged
# its last message. For that time two consumers work on the queue, and later messages are done before
# earlier ones. A connection that is lost first returns its messages, and the next consumer gets all of
# them in order.
#
# Why it matters: workers that rely on the single active consumer for the order of a key lose it in each
# graceful deployment, and never in a test that kills them. To hand over in order, close the connection
# without a cancel: what is still in hand is delivered again, in order.
#
# Output (six messages, A is active with a prefetch of 3 and holds three of them; B waits):
#   A's connection ends   B is given 0 1 2 3 4 5
#   A sends basic.cancel  B is given 3 4 5 while A still holds 0 1 2
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

URL = f"amqp://guest:guest@127.0.0.1:{sys.argv[1]}/"


async def hand_over(queue, leave):
    first, second = await aiormq.connect(URL), await aiormq.connect(URL)
    a, b = await first.channel(), await second.channel()
    arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    await a.queue_declare(queue, durable=True, arguments=arguments)
    in_hand, given = [], []

    async def hold(message):
        in_hand.append(message.body.decode())

    async def work(message):
        given.append(message.body.decode())
        await b.basic_ack(message.delivery.delivery_tag)

    await a.basic_qos(prefetch_count=3)
    consumer = await a.basic_consume(queue, hold)
    await b.basic_qos(prefetch_count=3)
    await b.basic_consume(queue, work)
    publisher = await second.channel(publisher_confirms=True)
    for number in range(6):
        await publisher.basic_publish(str(number).encode(), routing_key=queue)
    await asyncio.sleep(1)
    assert in_hand == ["0", "1", "2"] and not given, (in_hand, given)
    await leave(first, a, consumer.consumer_tag)
    await asyncio.sleep(3)
    await second.close()
    await first.close()
    return " ".join(given)


async def main():
    killed = await hand_over("killed", lambda connection, channel, tag: connection.close())
    print(f"A's connection ends   B is given {killed}")
    cancelled = await hand_over("cancelled", lambda connection, channel, tag: channel.basic_cancel(tag))
    print(f"A sends basic.cancel  B is given {cancelled} while A still holds 0 1 2")
    if (killed, cancelled) != ("0 1 2 3 4 5", "3 4 5"):
        sys.exit("changed: the next single active consumer starts at another moment")


asyncio.run(main())
PY
