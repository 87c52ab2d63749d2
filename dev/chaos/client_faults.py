"""H: what clients do, and what happens between them and an api."""

import asyncio

import msgspec

from dev.chaos.act import Act, kind
from dev.chaos.clients import body_of
from dev.chaos.database_faults import ask
from dev.chaos.process_faults import until

CLIENTS = ("clients",)

MAKE_OLD = """
    UPDATE idempotency_keys SET created_at = clock_timestamp() - interval '8 days' WHERE key = %s RETURNING key
"""
IS_KNOWN = "SELECT EXISTS (SELECT FROM idempotency_keys WHERE key = %s)"


def nothing(_: str) -> tuple[str, ...]:
    """Keep nothing: others may do what they like meanwhile."""
    return ()


@kind("H1", "clients hang up before the answer", CLIENTS, weight=3, keeps=nothing)
async def hang_up(act: Act) -> None:
    """Twenty of them."""
    act.fired("20 clients")
    await asyncio.gather(*(act.clients.hang_up() for _ in range(20)))
    act.healed()


@kind("H2", "the same key fifty times at once", CLIENTS, weight=2, keeps=nothing)
async def same_key(act: Act) -> None:
    """Over all apis."""
    act.fired("50 requests")
    assert await act.clients.ask_at_once(50), "one key, more than one order"
    act.healed()


@kind("H3", "the same key with another body", CLIENTS, weight=1.5, keeps=nothing)
async def misuse(act: Act) -> None:
    """Refused with 422, ten times."""
    act.fired("10 keys")
    await asyncio.gather(*(act.clients.misuse_a_key() for _ in range(10)))
    act.healed()


@kind("H4", "a key used again after its retention", CLIENTS, weight=0.7, seconds=(90.0, 90.0), keeps=nothing)
async def outlive_a_key(act: Act) -> None:
    """It is made old, and some api forgets it: then it stands for a new order, and the first one stays."""

    async def forget(key: str) -> None:
        await ask(act, MAKE_OLD, key)
        act.fired("one key")
        async with asyncio.timeout(act.seconds):
            while (await ask(act, IS_KNOWN, key))[0]:  # noqa: ASYNC110  # the database calls nobody
                await asyncio.sleep(0.5)

    await act.clients.use_twice(forget)
    act.healed()


@kind(
    "H5",
    "an api's answer is lost: nginx asks another",
    ("nginx-api",),
    weight=2,
    seconds=(40.0, 40.0),
    keeps=lambda p: (f"wires {p}",),
)
async def lose_an_answer(act: Act) -> None:
    """The order is committed, its 201 never arrives; the second api finds it by its key."""
    wire = act.rng.choice(act.stage.wires[act.place])
    before = wire.swallowed
    wire.swallow(b"HTTP/1.1 201")
    await until(lambda: wire.swallowed > before, act.seconds, "no order was placed over this wire")
    act.fired("one answer")
    act.healed()


@kind("H8", "slow bodies", CLIENTS, weight=1, seconds=(2.0, 8.0), keeps=nothing)
async def dribble(act: Act) -> None:
    """Five clients that take seconds to send their order."""
    act.fired(f"5 clients, {act.seconds:.1f} s")
    await asyncio.gather(*(act.clients.dribble(act.seconds) for _ in range(5)))
    act.healed()


@kind("H9", "hostile JSON", CLIENTS, weight=2, keeps=nothing)
async def hostile(act: Act) -> None:
    """Each is a 4xx, never a 500, and harms no order beside it."""
    good = msgspec.json.encode(body_of(1))
    bodies = [
        good.replace(b"GBP", b"G\\u0000P"),
        good.replace(b"HEART", b"\xff\xfe"),
        b"[" * 50_000,
        good.replace(b'"quantity":1', b'"quantity":' + b"9" * 400),
        good[:-1] + b',"customer_id":"","customer_id":"x' + b"y" * 100 + b'"}',
        good.replace(b"c1", b"\\ud800"),
        b"",
        b"null",
        b"{}" * 3,
    ]
    act.fired(f"{len(bodies)} bodies")
    act.clients.send(10)
    statuses = {400, 411, 413, 415, 422}
    await asyncio.gather(*(act.clients.expect("hostile JSON", statuses, body) for body in bodies))
    act.healed()


@kind("H10", "ten times as many orders", CLIENTS, weight=1.5, seconds=(1.0, 1.0), keeps=nothing)
async def burst(act: Act) -> None:
    """All of ten seconds in one."""
    many = min(600, int(10 * act.clients.rate))
    act.fired(f"{many} orders")
    act.clients.send(many)
    act.healed()
