"""H and O: what clients do, and what operators do."""

import asyncio
import os
import sys

import msgspec

from chaos.act import Act, kind
from chaos.clients import body_of
from sandbox.process import ROOT

CLIENTS = ("clients",)


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


BAD_STARTS = (
    ("orders.app", {"ORDERS_PORT": "many"}, 2, "ORDERS_PORT"),
    ("orders.app", {"DATABASE_URL": "mysql://x"}, 2, "DATABASE_URL"),
    ("orders.worker", {"AMQP_URL": "http://x"}, 2, "AMQP_URL"),
    ("orders.worker", {"ORDERS_HANDLER": "no.such.module:work"}, 1, "ORDERS_HANDLER"),
    ("relay", {"RELAY_PORT": "-1"}, 2, "RELAY_PORT"),
)


@kind("O10", "a process started with a wrong setting", CLIENTS, weight=1, keeps=nothing)
async def bad_start(act: Act) -> None:
    """It ends at once, with one line that names the setting."""
    module, wrong, code, named = act.rng.choice(BAD_STARTS)
    urls = {"DATABASE_URL": act.stage.servers.database_url, "AMQP_URL": act.stage.servers.amqp_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module,
        cwd=ROOT,
        env={**os.environ, **urls, **wrong},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    act.fired(f"{module} with {wrong}")
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    lines = said.decode().strip().splitlines()
    assert process.returncode == code, f"{module} with {wrong} ended with {process.returncode}: {lines[-1:]}"
    assert len(lines) == 1, f"{module} with {wrong} said {lines}"
    assert named in lines[0], f"{module} with {wrong} said {lines}"
    act.healed()
