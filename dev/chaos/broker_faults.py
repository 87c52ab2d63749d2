"""M: what happens to RabbitMQ, its queues and its messages."""

import asyncio
import contextlib
import secrets
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiormq
import httpx
import msgspec
import pamqp.frame
from aiormq.abc import AbstractChannel, FieldTable
from aiormq.exceptions import AMQPError
from pamqp.commands import Exchange

from dev.chaos.act import Act, kind
from dev.chaos.amqp_wire import ack_of
from dev.chaos.database_faults import ask
from dev.chaos.process_faults import ready_again, until
from dev.chaos.recorder import QUEUE
from dev.sandbox.local_rabbitmq import LocalRabbitMQ
from dev.sandbox.system import declare_topology
from dev.sandbox.wire import LinkConditions
from orders.broker.topology import WORK_QUEUE
from orders.model import events
from orders.model.ids import uuid7

RABBITMQ = ("rabbitmq",)
FIRES_SECONDS = 40.0
POISON = b"chaos: not an event "  # what every poison of ours begins with, so that it is known in the dead letters


@kind("M1", "RabbitMQ killed", RABBITMQ, weight=0.8, seconds=(0.0, 2.0))
async def kill(act: Act) -> None:
    """SIGKILL; it comes back on the same data."""
    act.fired()
    await asyncio.to_thread(act.stage.servers.rabbitmq.kill)
    await asyncio.sleep(act.seconds)
    await asyncio.to_thread(act.stage.servers.rabbitmq.start)
    act.healed()


@kind("M2", "RabbitMQ restarted", RABBITMQ, weight=0.6)
async def restart(act: Act) -> None:
    """It says goodbye to its clients, and comes back."""
    act.fired()
    await asyncio.to_thread(act.stage.servers.rabbitmq.stop)
    await asyncio.to_thread(act.stage.servers.rabbitmq.start)
    act.healed()


@kind("M5", "memory alarm: publishers are blocked", RABBITMQ, weight=0.6, seconds=(2.0, 6.0))
async def alarm(act: Act) -> None:
    """The broker reads no more from whoever publishes."""
    await ctl(act, "set_vm_memory_high_watermark", "0.00001")
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    await ctl(act, "set_vm_memory_high_watermark", "0.4")
    act.healed()


@kind("M7", "the work queue refuses: it is full", RABBITMQ, seconds=(2.0, 5.0))
async def refuse(act: Act) -> None:
    """A policy of one message at most: what comes meanwhile is nacked."""
    path = f"/policies/{vhost(act)}/chaos"
    definition = {"pattern": f"^{WORK_QUEUE}$", "definition": {"max-length": 1}, "apply-to": "queues"}
    await manage(act, "PUT", path, definition)
    act.fired(f"{act.seconds:.1f} s")
    try:
        await asyncio.sleep(act.seconds)
    finally:
        await manage(act, "DELETE", path)
    act.healed()


WORKERS = ("worker-1", "worker-2", "worker-3")


@kind(
    "M25",
    "a policy lets messages expire while the workers are away",
    RABBITMQ,
    seconds=(2.0, 8.0),
    keeps=lambda place: (place, *WORKERS),
)
async def expire(act: Act) -> None:
    """What comes meanwhile, and what the killed workers had in hand, expires into the dead-letter queue."""
    path = f"/policies/{vhost(act)}/chaos-expire"
    definition = {"pattern": f"^{WORK_QUEUE}$", "definition": {"message-ttl": 50}, "apply-to": "queues"}
    await manage(act, "PUT", path, definition)
    act.fired(f"{act.seconds:.1f} s")
    try:
        end = time.monotonic() + act.seconds
        while time.monotonic() < end:
            for name in WORKERS:
                if act.stage.process(name).pid is not None:
                    await asyncio.to_thread(act.stage.process(name).kill)
            await asyncio.sleep(0.3)
    finally:
        await manage(act, "DELETE", path)
    act.healed()
    for name in WORKERS:
        await ready_again(act.stage.process(name))


RELAYS = ("relay-1", "relay-2", "relay-3")


def with_relays(_: str) -> tuple[str, ...]:
    """Keep the broker, and the relays that are held meanwhile."""
    return ("rabbitmq", *RELAYS)


@kind("M8", "the bindings are removed: messages come back", RABBITMQ, seconds=(1.0, 4.0), keeps=with_relays)
async def unbind(act: Act) -> None:
    """Until somebody binds it. A message that reaches another queue does not come back, so ours is unbound too."""
    async with relays_held(act), channel_of(act) as channel:
        await bind(channel, WORK_QUEUE, wanted=False)
        await bind(channel, QUEUE, wanted=False)
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    async with relays_held(act), channel_of(act) as channel:
        await bind(channel, WORK_QUEUE, wanted=True)
        await bind(channel, QUEUE, wanted=True)
    act.healed()


@kind(
    "M9",
    "the work queue is deleted while it is empty",
    RABBITMQ,
    weight=0.8,
    seconds=(0.5, 3.0),
    keeps=with_relays,
)
async def delete_empty_queue(act: Act) -> None:
    """The relays are held until nothing is in it; `orders topology` brings it back."""
    async with relays_held(act):
        try:
            await empty(act)
        except TimeoutError:  # orders whose claim D24 has undone are on their way until the sweep finds them
            act.fired("never empty: left alone")
            act.healed()
            return
        async with channel_of(act) as channel:
            await bind(channel, QUEUE, wanted=False)
            await channel.queue_delete(WORK_QUEUE)
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    async with relays_held(act):
        await topology(act)
        async with channel_of(act) as channel:
            await bind(channel, QUEUE, wanted=True)
    act.healed()


@contextlib.asynccontextmanager
async def relays_held(act: Act) -> AsyncIterator[None]:
    """Stop the relays, so that no message is on its way while what it goes to is changed."""
    relays = [act.stage.process(name) for name in RELAYS]
    await asyncio.gather(*(asyncio.to_thread(relay.pause) for relay in relays))
    try:
        await asyncio.sleep(0.3)
        yield
    finally:
        await asyncio.gather(*(asyncio.to_thread(relay.resume) for relay in relays))


async def bind(channel: AbstractChannel, queue: str, *, wanted: bool) -> None:
    """Have a queue bound to all events that have to reach one, or to none: what one queue has, another may miss."""
    for event_type in sorted(events.REQUIRED):
        await (channel.queue_bind if wanted else channel.queue_unbind)(queue, events.EXCHANGE, event_type)


@kind(
    "M13",
    "the broker closes a channel",
    ("relay-mq", "mq-worker"),
    weight=1.5,
    seconds=(40.0, 40.0),
    keeps=lambda p: (f"wires {p}",),
)
async def close_channel(act: Act) -> None:
    """Over a word that nobody of ours has said: 404 for a publisher, 406 for a consumer."""
    # Whichever uses one next: one of several relays may have nothing to publish.
    wires = act.stage.amqp_wires(act.place)

    def interjected() -> int:
        return sum(wire.interjected for wire in wires)

    before = interjected()
    for wire in wires:
        wire.interject(ask_for_nothing if act.place == "relay-mq" else ack_the_unknown)
    try:
        await until(lambda: interjected() > before, act.seconds, f"nobody used a channel over {act.place}")
    finally:
        for wire in wires:
            wire.interject(None)
    act.fired("a channel")
    act.healed()


def ask_for_nothing(channel: int) -> bytes:
    """Whether an exchange is there that is not."""
    declare = Exchange.Declare(exchange="chaos.nowhere", passive=True)
    return bytes(pamqp.frame.marshal(declare, channel))


def ack_the_unknown(channel: int) -> bytes:
    return ack_of(channel, 2**40)


@kind(
    "M19",
    "confirms come one by one and out of order",
    ("relay-mq",),
    weight=1.5,
    seconds=(2.0, 6.0),
    keeps=lambda p: ("wires relay-mq",),
)
async def shuffle_confirms(act: Act) -> None:
    """Also those that the broker puts into one word for many."""
    wires = act.stage.amqp_wires("relay-mq")
    for wire in wires:
        wire.shuffle()
    act.clients.send(200)
    start = time.monotonic()
    before = sum(wire.moved for wire in wires)
    await until(lambda: sum(wire.moved for wire in wires) > before, FIRES_SECONDS, "never two confirms together")
    act.fired()
    await asyncio.sleep(max(0.0, start + act.seconds - time.monotonic()))
    act.fired(f"{sum(wire.moved for wire in wires) - before} confirms out of order")
    for wire in wires:
        wire.mend()
    act.healed()


@kind("M14", "an operator closes connections", RABBITMQ, weight=2)
async def close_connections(act: Act) -> None:
    """Half of those there are, over the management interface."""
    # The management interface tells of a connection seconds after it was made, and a restart may just be over.
    end = time.monotonic() + FIRES_SECONDS
    while not (found := [str(each["name"]) for each in await manage(act, "GET", "/connections")]):
        if time.monotonic() > end:
            raise TimeoutError("the broker shows no connection")
        await asyncio.sleep(0.2)
    closed = act.rng.sample(found, (len(found) + 1) // 2)
    for name in closed:
        await manage(act, "DELETE", f"/connections/{quote(name, safe='')}")
    act.fired(f"{len(closed)} connections")
    act.healed()


@kind("M15", "RabbitMQ stopped by SIGSTOP", RABBITMQ, weight=0.8, seconds=(2.0, 14.0))
async def pause(act: Act) -> None:
    """Its connections stay open; heartbeats fail."""
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.to_thread(act.stage.servers.rabbitmq.pause)
    try:
        await asyncio.sleep(act.seconds)
    finally:
        await asyncio.to_thread(act.stage.servers.rabbitmq.resume)
    act.healed()


@kind(
    "M17",
    "confirms come later than anybody waits for them",
    ("relay-mq",),
    seconds=(5.0, 8.0),
    keeps=lambda p: ("wires relay-mq",),
)
async def late_confirms(act: Act) -> None:
    """The broker's words are kept for a while, then delivered: the messages are stored long before."""
    wire = act.rng.choice(act.stage.wires["relay-mq"])
    wire.apply(LinkConditions(silent=frozenset({"back"})))
    act.fired(f"{act.seconds:.1f} s")
    await asyncio.sleep(act.seconds)
    wire.mend()
    act.healed()


@kind(
    "M18",
    "a confirm is lost though the message is stored",
    ("relay-mq",),
    weight=2,
    seconds=(40.0, 40.0),
    keeps=lambda p: ("wires relay-mq",),
)
async def lose_confirm(act: Act) -> None:
    """The broker's Basic.Ack never arrives, and the connection with it is reset."""
    wire = act.rng.choice(act.stage.wires["relay-mq"])
    before = wire.swallowed
    wire.swallow(b"\x00\x3c\x00\x50")  # class 60, method 80: Basic.Ack
    await until(lambda: wire.swallowed > before, act.seconds, "no confirm came over this wire")
    act.fired("one answer")
    act.healed()


@kind(
    "M20",
    "redelivery storm: every consumer loses its connection with all in hand",
    ("mq-worker",),
    weight=2,
    keeps=lambda p: (),
)
async def storm(act: Act) -> None:
    """All three workers at once, with requests on the way."""
    act.clients.send(60)
    await asyncio.sleep(0.3)
    for wire in act.stage.wires["mq-worker"]:
        wire.reset()
    act.fired("three connections")
    act.healed()


@kind("M21", "poison in the work queue", RABBITMQ, weight=1.5)
async def poison(act: Act) -> None:
    """Not JSON; JSON that is no event; an event of another form; a megabyte of nothing."""
    bodies = [
        POISON + b"{",
        msgspec.json.encode({"poison": POISON.decode()}),
        msgspec.json.encode({"specversion": "9.9", "id": "x", "type": "order.placed", "poison": POISON.decode()}),
        POISON * 50_000,
    ]
    async with channel_of(act) as channel:
        for body in bodies:
            await channel.basic_publish(body, exchange="", routing_key=WORK_QUEUE, properties=persistent())
    act.fired(f"{len(bodies)} messages")
    act.healed()


@kind("M22", "a foreign publisher forges events, ids and reserved headers", RABBITMQ, weight=1.5)
async def forge(act: Act) -> None:
    """Orders that do not exist; orders that have ended; a delivery count of a million."""
    known = sorted(act.recorder.ended)[-3:]
    headers: FieldTable = {"x-delivery-count": 1_000_000, "x-death": "nonsense", "traceparent": "00-zz-zz-zz"}
    async with channel_of(act) as channel:
        for order_id in (str(uuid7()), *known):
            body = msgspec.json.encode(
                {
                    "specversion": "1.0", "id": str(uuid7()), "source": "/chaos", "type": "order.placed",
                    "subject": order_id, "time": "2026-01-01T00:00:00Z",
                    "data": {"order_id": order_id, "status": "placed", "version": 1,
                             "failure_reason": POISON.decode()},
                }
            )  # fmt: skip
            properties = persistent(headers)
            await channel.basic_publish(body, exchange="", routing_key=WORK_QUEUE, properties=properties)
    act.fired(f"{1 + len(known)} messages")
    act.healed()


IN_SOMEBODYS_HANDS = """
    SELECT count(*) FROM orders o
    WHERE o.status = 'processing' AND o.worker <> 0
       OR o.status = 'placed'
          AND NOT EXISTS (SELECT FROM outbox e WHERE e.key = o.order_id::text AND e.state IN ('pending', 'parked'))
          AND NOT EXISTS (SELECT FROM retries r WHERE r.order_id = o.order_id)
"""


async def empty(act: Act, seconds: float = 20.0) -> None:
    """Return when the work queue has nothing in it, nor any worker in its hands, twice."""
    end = time.monotonic() + seconds
    seen = 0
    while seen < 2:
        if time.monotonic() > end:
            raise TimeoutError("the work queue does not run empty")
        async with channel_of(act) as channel:
            declared = await channel.queue_declare(WORK_QUEUE, passive=True)
        in_hand = await ask(act, IN_SOMEBODYS_HANDS)
        seen = seen + 1 if not declared.message_count and in_hand == (0,) else 0
        await asyncio.sleep(0.3)


def persistent(headers: FieldTable | None = None) -> aiormq.spec.Basic.Properties:
    """Properties of a message that survives."""
    return aiormq.spec.Basic.Properties(
        delivery_mode=2, message_id=f"chaos-{secrets.token_hex(8)}", headers=headers or {}
    )


@contextlib.asynccontextmanager
async def channel_of(act: Act) -> AsyncIterator[AbstractChannel]:
    """A channel of an operator, past every wire."""
    async with asyncio.timeout(5):
        connection = await aiormq.connect(act.stage.servers.amqp_url)
    try:
        yield await connection.channel()
    finally:
        with contextlib.suppress(AMQPError, OSError, TimeoutError):
            async with asyncio.timeout(2):
                await connection.close()


async def manage(act: Act, method: str, path: str, body: object = None) -> Any:
    """Ask the management interface; return its JSON."""
    url = urlsplit(str(act.stage.servers.management_url))
    auth = (url.username or "", url.password or "")
    async with httpx.AsyncClient(auth=auth, timeout=20, trust_env=False) as http:
        answer = await http.request(method, f"http://{url.hostname}:{url.port}/api{path}", json=body)
        if answer.status_code != httpx.codes.NOT_FOUND:
            answer.raise_for_status()
        return answer.json() if answer.content else None


def vhost(act: Act) -> str:
    """The name of our vhost, as it stands in a path."""
    return quote(urlsplit(act.stage.servers.amqp_url).path.removeprefix("/"), safe="")


async def topology(act: Act) -> None:
    """What a person does: `orders topology`."""
    await asyncio.to_thread(declare_topology, act.stage.servers.amqp_url)


async def ctl(act: Act, *words: str) -> None:
    """Run rabbitmqctl as the server's own user."""
    server = act.stage.servers.rabbitmq
    assert isinstance(server, LocalRabbitMQ)
    spec = server.process.spec
    program = Path(spec.command[0]).with_name("rabbitmqctl")
    done = await asyncio.to_thread(
        subprocess.run,
        [str(program), "-n", spec.environ["RABBITMQ_NODENAME"], *words],
        env=dict(spec.environ),
        user=spec.user,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"rabbitmqctl {words[0]}: {done.stdout.strip()[-200:]}")
