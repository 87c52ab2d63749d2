"""One seeded, random run of several relays under faults, and what a consumer saw of it.

The seed decides how many relays there are, how they are set, what the writers do and which faults come when. Writers
lock their key's row before they insert, as the contract asks, so that each key's numbers are its commit order; they are
slow at times, roll back at times, and commit out of the order of ids across keys. Everything goes to one queue, by two
routing keys, so that the order on the exchange can be read off the queue: it is full at times (nacks), and one of the
bindings is away at times (returns).
"""

import asyncio
import contextlib
import random
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import aiormq
import msgspec
from aiormq.abc import AbstractChannel, DeliveredMessage
from psycopg import AsyncConnection

from tests.eventually import eventually
from tests.relay.service import RelayProcess, append, states
from tests.relay.wire import Wire

QUEUE = "recorded"
STEADY, TOGGLED = "steady", "toggled"
KEYS = 200
WRITERS = 8
ROOM = 150  # messages in the queue, beyond which the broker nacks
SETTLE_SECONDS = 120.0
EFFECT_SECONDS = 20.0  # that a fault of the queue may take to show, where writers are slow
WRONG_KEPT = 5


class Result(msgspec.Struct, kw_only=True):
    """What a run showed; `wrong` is empty when it kept the promise."""

    seed: int
    relays: int
    events: int = 0
    rolled_back: int = 0
    delivered: int = 0
    repeats: int = 0
    kills: int = 0
    stops: int = 0
    cuts: int = 0
    holds: int = 0
    nacks_seen: bool = False
    returns_seen: bool = False
    seconds: float = 0.0
    wrong: list[str] = []

    @property
    def is_vacuous(self) -> bool:
        """Whether a fault that was meant to happen did not."""
        return not (self.kills and self.stops and self.cuts and self.nacks_seen and self.returns_seen and self.repeats)


Relays = list[tuple[RelayProcess, Wire, Wire]]


def _told_of(answer: str, relays: Relays) -> bool:
    """Say whether a relay has logged such an answer of the broker."""
    return any(answer in relay.log.read_text() for relay, _, _ in relays)


class Run:
    """One run; everything random in it comes from its seed."""

    def __init__(self, seed: int, database_url: str, amqp_url: str, folder: Path, events: int) -> None:
        self._random = random.Random(seed)
        self._database_url = database_url
        self._amqp_url = amqp_url
        self._folder = folder
        self._wanted = events
        self._seen: dict[str, list[int]] = {}
        self._consumer: AbstractChannel | None = None
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._delivered = asyncio.Event()
        self.result = Result(seed=seed, relays=self._random.randint(2, 5))

    async def run(self) -> Result:
        """Write under faults, heal, wait until all is settled, and compare."""
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            conn = await stack.enter_async_context(await AsyncConnection.connect(self._database_url, autocommit=True))
            await self._prepare(conn)
            connection = await stack.enter_async_context(aiormq.connect(self._amqp_url))
            control = await connection.channel()
            await self._declare(control)
            self._consumer = await connection.channel(frame_buffer_size=0)
            await self._consumer.basic_qos(prefetch_count=100)
            await self._consumer.basic_consume(QUEUE, self._take)
            relays = []
            for _ in range(self.result.relays):
                database = await stack.enter_async_context(Wire(self._database_url).open())
                broker = await stack.enter_async_context(Wire(self._amqp_url).open())
                relay = self._relay(database, broker)
                stack.callback(relay.kill)
                relays.append((relay.start(), database, broker))
            await asyncio.gather(*(relay.ready(30) for relay, _, _ in relays))
            writing = asyncio.gather(
                *(self._write(random.Random(self._random.random())) for _ in range(WRITERS)), return_exceptions=False
            )
            await self._break_things(relays, control, writing)
            await writing
            await self._settle(conn)
            self.result.nacks_seen = _told_of("nacked", relays)
            self.result.returns_seen = _told_of("returned", relays)
            self.result.cuts = sum(wire.cuts for _, *wires in relays for wire in wires)
        self.result.seconds = round(time.monotonic() - began, 1)
        return self.result

    def _relay(self, database: Wire, broker: Wire) -> RelayProcess:
        return RelayProcess(
            database.url,
            broker.url,
            self._folder,
            exchanges="orders",
            required_queues=QUEUE,
            batch_rows=self._random.choice([20, 100, 500]),
            hold_seconds=self._random.choice([0.05, 0.25]),
            confirm_seconds=self._random.choice([1.0, 3.0]),
            probe_seconds=0.3,
        )

    async def _prepare(self, conn: AsyncConnection[Any]) -> None:
        await conn.execute("CREATE TABLE things (key text PRIMARY KEY, number integer NOT NULL DEFAULT 0)")
        await conn.execute(
            "INSERT INTO things (key) SELECT 'thing-' || n FROM generate_series(0, %s) AS n", (KEYS - 1,)
        )

    async def _declare(self, channel: AbstractChannel) -> None:
        await channel.exchange_declare("orders", exchange_type="topic", durable=True)
        await channel.queue_declare(
            QUEUE,
            durable=True,
            arguments={"x-queue-type": "quorum", "x-max-length": ROOM, "x-overflow": "reject-publish"},
        )
        for routing_key in (STEADY, TOGGLED):
            await channel.queue_bind(QUEUE, "orders", routing_key)

    async def _take(self, message: DeliveredMessage) -> None:
        # Recorded before anything is awaited: deliveries start in order, and need not go on in it.
        key, _, number = message.body.decode().partition(" ")
        self.result.delivered += 1
        self._delivered.set()
        numbers = self._seen.setdefault(key, [])
        if int(number) in numbers:
            self.result.repeats += 1
        else:
            numbers.append(int(number))
        await self._unpaused.wait()
        assert self._consumer is not None
        assert message.delivery_tag is not None
        await self._consumer.basic_ack(message.delivery_tag, wait=False)

    async def _write(self, dice: random.Random) -> None:
        """Write transactions over a few keys each until there are enough events."""
        async with await AsyncConnection.connect(self._database_url) as conn:
            # A run without any repeat shows nothing of what a crash costs, so it goes on for a while.
            while self.result.events < (self._wanted if self.result.repeats else 3 * self._wanted):
                keys = sorted({f"thing-{dice.randrange(KEYS)}" for _ in range(dice.randint(1, 6))})
                written = 0
                for key in keys:
                    row = await (
                        await conn.execute("SELECT number FROM things WHERE key = %s FOR UPDATE", (key,))
                    ).fetchone()
                    assert row is not None
                    more = dice.choice([1, 1, 1, 2, 5])
                    for number in range(row[0] + 1, row[0] + 1 + more):
                        await append(
                            conn,
                            key,
                            f"{key} {number}".encode(),
                            routing_key=dice.choice([STEADY, STEADY, TOGGLED]),
                            event_id=uuid.UUID(int=dice.getrandbits(128)),
                        )
                    await conn.execute("UPDATE things SET number = number + %s WHERE key = %s", (more, key))
                    written += more
                if dice.random() < 0.03:
                    await asyncio.sleep(dice.choice([0.05, 0.3, 1.5]))
                if dice.random() < 0.05:
                    await conn.rollback()
                    self.result.rolled_back += written
                else:
                    await conn.commit()
                    self.result.events += written

    async def _break_things(self, relays: Relays, control: AbstractChannel, writing: "asyncio.Future[Any]") -> None:
        """One fault after the other, some overlapping, until the writers are done and each kind has been."""
        healing: list[asyncio.Task[None]] = []
        kinds = ["kill", "stop", "cut", "cut", "hold", "full", "unbind"]
        due = kinds[:]
        self._random.shuffle(due)
        busy: set[int] = set()
        while due or not writing.done():
            kind = due.pop() if due else self._random.choice(kinds)
            at = self._random.randrange(len(relays))
            seconds = self._random.uniform(0.2, 1.5)
            if kind in ("kill", "stop") and (at in busy or len(busy) + 1 >= len(relays)):
                kind = "cut"
            healing.append(
                asyncio.create_task(self._fault(kind, at, relays, control, seconds, busy), name=f"fault-{kind}")
            )
            await asyncio.sleep(self._random.uniform(0.1, 0.9))
            for task in healing:
                if task.done():
                    task.result()
        await asyncio.gather(*healing)

    async def _fault(
        self,
        kind: str,
        at: int,
        relays: Relays,
        control: AbstractChannel,
        seconds: float,
        busy: set[int],
    ) -> None:
        """Do one fault and undo it."""
        relay, database, broker = relays[at]
        wire = self._random.choice([database, broker])
        match kind:
            case "kill":
                busy.add(at)
                self.result.kills += 1
                # Where a message has just come through, its row is most likely not recorded yet: that makes a repeat.
                self._delivered.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._delivered.wait()
                relay.kill()
                await asyncio.sleep(seconds / 2)
                relay.start()
                busy.discard(at)
            case "stop":
                busy.add(at)
                self.result.stops += 1
                relay.signal(signal.SIGSTOP)
                await asyncio.sleep(seconds * 2)
                relay.signal(signal.SIGCONT)
                busy.discard(at)
            case "cut":
                wire.cut()
            case "hold":
                self.result.holds += 1
                wire.hold()
                await asyncio.sleep(seconds * 1.5)
                wire.release()
            case "full":
                self._unpaused.clear()
                await asyncio.sleep(seconds)
                await eventually(lambda: _told_of("nacked", relays), within=EFFECT_SECONDS)
                self._unpaused.set()
            case "unbind":
                await control.queue_unbind(QUEUE, "orders", TOGGLED)
                await asyncio.sleep(seconds)
                await eventually(lambda: _told_of("returned", relays), within=EFFECT_SECONDS)
                await control.queue_bind(QUEUE, "orders", TOGGLED)

    async def _settle(self, conn: AsyncConnection[Any]) -> None:
        """Wait until every row is sent and seen, then hold what was seen against what was committed."""
        end = time.monotonic() + SETTLE_SECONDS
        expected: dict[str, int] = dict(
            await (await conn.execute("SELECT key, number FROM things WHERE number > 0")).fetchall()
        )
        total = sum(expected.values())
        while sum(map(len, self._seen.values())) < total or set(await states(conn)) - {"sent"}:
            if time.monotonic() > end:
                self.result.wrong.append(f"not settled in {SETTLE_SECONDS:g} s: {await states(conn)}")
                break
            await asyncio.sleep(0.1)
        for key, number in expected.items():
            seen = self._seen.get(key, [])
            if seen != list(range(1, number + 1)):
                missing = sorted(set(range(1, number + 1)) - set(seen))
                at = next((at for at, each in enumerate(seen, start=1) if each != at), len(seen) + 1)
                self.result.wrong.append(f"{key}: of {number} missing {missing[:5]}, first out of order at {at}")
        del self.result.wrong[WRONG_KEPT:]
        if total != self.result.events:
            self.result.wrong.append(f"{total} events committed, {self.result.events} counted")
        left = await (await conn.execute("SELECT count(*) FROM outbox_waiting")).fetchone()
        if left != (0,):
            self.result.wrong.append(f"{left} keys still wait")
