"""Run `orders reconcile` in a process of its own, and read its report."""

import asyncio
from typing import Any
from uuid import UUID

import msgspec

from dev.sandbox.process import ROOT
from tests import warm

Found = tuple[str, str, UUID]


async def reconcile(database_url: str, *words: str, amqp_url: str = "") -> tuple[int, dict[str, Any]]:
    """Run the command; return its exit code and its JSON."""
    done = await asyncio.to_thread(
        warm.run,
        [warm.ORDERS, "reconcile", "--json", *words],
        env={"DATABASE_URL": database_url, "AMQP_URL": amqp_url, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )
    return done.returncode, msgspec.json.decode(done.stdout) if done.stdout else {"error": done.stderr}


def found(report: dict[str, Any]) -> list[Found]:
    """Return the findings of a report: what, why in a word, whose."""
    return [(each["kind"], each["cause"], UUID(each["order_id"])) for each in report["findings"]]


async def exit_and_findings(database_url: str) -> tuple[int, list[Found]]:
    code, report = await reconcile(database_url)
    return code, found(report)
