"""Run `orders reconcile` in a process of its own, and read its report."""

import asyncio
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from dev.sandbox.process import ROOT

Found = tuple[str, str, UUID]


async def reconcile(database_url: str, *words: str, amqp_url: str = "") -> tuple[int, dict[str, Any]]:
    """Run the command; return its exit code and its JSON."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("orders")),
        "reconcile",
        "--json",
        *words,
        cwd=ROOT,
        env={"DATABASE_URL": database_url, "AMQP_URL": amqp_url, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, msgspec.json.decode(out) if out else {"error": err.decode()}


def found(report: dict[str, Any]) -> list[Found]:
    """Return the findings of a report: what, why in a word, whose."""
    return [(each["kind"], each["cause"], UUID(each["order_id"])) for each in report["findings"]]


async def exit_and_findings(database_url: str) -> tuple[int, list[Found]]:
    code, report = await reconcile(database_url)
    return code, found(report)
