"""What nginx keeps to itself."""

import pytest

from tests.nginx.conftest import StartApi, StartNginx
from tests.nginx.upstream import answer

HIDDEN = [
    "/health/live",
    "/health/ready",
    "/health/",
    "/health/live?x=1",
    "/health%2Flive",
    "/%68ealth/live",
    "//health//live",
    "/orders/../health/live",
    "/orders/%2e%2e/metrics",
    "/metrics",
    "/metrics/",
    "/metrics?x=1",
    "/%6detrics",
    "//metrics",
    "http://shop.example/metrics",
    "/.problem",
    "/.repeat",
    "/.wait",
    "/.stream",
]


@pytest.mark.parametrize("target", HIDDEN)
async def test_hidden(api: StartApi, nginx: StartNginx, target: str) -> None:
    """
    A process's own probes and numbers, and nginx's inner names, are not found, however they are spelled and asked for.
    """
    only = await api(answer())
    proxy = await nginx(only)

    for method in ("GET", "POST"):
        got = await proxy.ask(method, target, ["Prefer: wait=1", "Idempotency-Key: k"])
        assert got.status == 404
        got.problem()
    assert (await proxy.ask("HEAD", target)).status == 404
    assert only.requests == []


@pytest.mark.parametrize("target", ["/health", "/health?x=1", "/healthy", "/docs", "/openapi.json", "/", "/nothing"])
async def test_proxied(api: StartApi, nginx: StartNginx, target: str) -> None:
    """
    Everything else is the api's to answer, `/health` too.
    """
    only = await api(answer())
    proxy = await nginx(only)

    assert (await proxy.ask("GET", target)).status == 200
    assert [target] == [request.target for request in only.requests]
