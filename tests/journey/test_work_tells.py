"""What a worker tells of itself."""

import re
from pathlib import Path

import httpx
import psycopg
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey.placing import all_are, place

PAGE = Path(__file__).parents[2] / "docs" / "worker.md"

METRICS = {
    "orders_worker_in_hand", "orders_worker_retries_waiting", "orders_worker_finished", "orders_worker_postponed",
    "orders_worker_deliveries", "orders_worker_redelivered", "orders_worker_dead_lettered", "orders_worker_suspects",
    "orders_worker_child_deaths", "orders_worker_transient_failures", "orders_worker_handler_seconds",
    "orders_worker_weather",  # until version 0.2
    "orders_placed_to_finished_seconds", "orders_worker_broker_connected", "orders_worker_database_connected",
}  # fmt: skip


async def test_status_and_metrics(start_system: StartSystem) -> None:
    """
    /status has the fields that the page for readers tells of, and /metrics counts each order once.
    """
    system = start_system(apis=0, with_nginx=False, settings={"ORDERS_HANDLER": "orders.handlers:do_nothing"})
    [url] = system.worker_urls
    async with (
        await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn,
        httpx.AsyncClient(base_url=url) as client,
    ):
        await place(conn, [None] * 30)
        await eventually(lambda: all_are(conn, {"done": 30}), 20)

        status = (await client.get("/status")).json()
        documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section("Health"), re.MULTILINE)))
        assert sorted(status) == sorted(set(documented) - {"status"})
        assert (status["done"], status["in_hand"]) == (30, 0)
        assert (status["broker"], status["database"]) == ("connected", "connected")

        families = {
            family.name: family for family in text_string_to_metric_families((await client.get("/metrics")).text)
        }
        assert families.keys() >= METRICS
        samples = {
            (sample.name, sample.labels.get("status")): sample.value
            for family in families.values()
            for sample in family.samples
        }
        assert samples["orders_worker_finished_total", "done"] == 30
        assert samples["orders_placed_to_finished_seconds_count", "done"] == 30
        assert 0 < samples["orders_placed_to_finished_seconds_sum", "done"] < 30 * 20
        assert samples["orders_worker_broker_connected", None] == 1
        assert samples["orders_worker_database_connected", None] == 1
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200


def section(title: str) -> str:
    return PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
