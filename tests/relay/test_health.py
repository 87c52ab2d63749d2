"""The relay's answers to a collector of metrics."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from relay.health import header, respond
from relay.state import RelayState


@pytest.mark.parametrize(
    ("accept", "kind"), [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics")]
)
def test_format_of_metrics(accept: str, kind: str) -> None:
    """
    A collector that accepts OpenMetrics gets it, every other one gets plain text; the charset is named once.
    """
    status, content_type, body = respond(RelayState(), "GET", "/metrics", accept)

    assert (status, content_type.count("charset=utf-8")) == (200, 1)
    assert content_type.startswith(kind)
    assert len(list((openmetrics if accept else plain)(body.decode()))) > 5


def test_header() -> None:
    """
    The name of a header is of any case, and its values are joined.
    """
    lines = ["Host: relay", "ACCEPT:  text/plain ", "accept: */*", ""]

    assert (header(lines, "accept"), header(lines, "cookie")) == ("text/plain,*/*", "")
