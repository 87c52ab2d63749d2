"""The metrics in both formats that collectors ask for."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from tests.orders.conftest import Api

OPENMETRICS = "application/openmetrics-text"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        (f"{OPENMETRICS};version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
    ],
)
async def test_format(api: Api, accept: str, kind: str) -> None:
    """
    A collector that accepts OpenMetrics gets it, every other one gets plain text; the charset is named once.
    """
    await api.place()
    answer = await api.client.get("/metrics", headers={"Accept": accept})

    content_type = answer.headers["content-type"]
    assert content_type.startswith(f"{kind}; version=")
    assert content_type.count("charset=utf-8") == 1
    families = {family.name for family in (openmetrics if kind == OPENMETRICS else plain)(answer.text)}
    assert "orders_problems" in families
