"""A replay against the whole system, and through an outage of it."""

import asyncio
import json
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey.trace import Trace

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
INVOICES = 150
COMMAND = [sys.executable, "-c", "from orders.tools.replay.command import replay; replay()"]


def have_started(trace: Trace, orders: int) -> bool:
    return len(trace.count("started")) >= orders


async def start(path: Path, url: str, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        str(path),
        "--to",
        url,
        "--json",
        *options,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )


@pytest.mark.long
async def test_every_api_is_killed_meanwhile(start_system: StartSystem, trace: Trace, tmp_path: Path) -> None:
    """
    While orders are replayed, every api is killed: each invoice is one order all the same, and done once.
    """
    path = tmp_path / "invoices.csv"
    path.write_text(HEADER + "".join(f"{n},SKU,THING,2,01/12/2010 08:26,1.5,,UK\n" for n in range(INVOICES)))
    system = start_system(settings=trace.settings)

    running = await start(path, system.base_url, "--rate", "75")
    for number in (1, 2, 3):
        await eventually(partial(have_started, trace, number * INVOICES // 5), 20)
        await asyncio.to_thread(system.process(f"api-{number}").kill)
    out, _ = await asyncio.wait_for(running.communicate(), 60)

    assert running.returncode == 0, out.decode()
    report = json.loads(out)
    assert (report["placed"], report["done"]) == (INVOICES, INVOICES)
    assert len(await trace.check(system, [])) == INVOICES

    again = await start(path, system.base_url)
    out, _ = await asyncio.wait_for(again.communicate(), 60)

    assert again.returncode == 0
    report = json.loads(out)
    assert (report["placed"], report["placed_before"], report["done"]) == (INVOICES, INVOICES, INVOICES)
    assert len(await trace.check(system, [])) == INVOICES
