"""The container's nginx, which finds the apis by name. The container's name server is one of ours."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from dev.sandbox import ports
from tests.nginx import name_server, upstream
from tests.nginx.name_server import Names
from tests.nginx.proxy import Proxy, in_a_container
from tests.nginx.upstream import Behaviour, Upstream, answer, first_then, hang_up


class Compose:
    """An nginx, and apis that come and go at addresses of their own on one port."""

    def __init__(self, proxy: Proxy, names: Names, port: int, stack: AsyncExitStack) -> None:
        self.proxy = proxy
        self.names = names
        self._port = port
        self._stack = stack
        self._last = 1

    async def start(self, behaviour: Behaviour) -> Upstream:
        self._last += 1
        host = f"127.0.0.{self._last}"
        api = await self._stack.enter_async_context(upstream.running(behaviour, host, self._port))
        self.names.addresses.append(host)
        return api

    def lose(self, api: Upstream) -> None:
        self.names.addresses.remove(api.address.partition(":")[0])


@pytest.fixture
async def compose(stack: AsyncExitStack, tmp_path: Path) -> AsyncIterator[Compose]:
    names = await stack.enter_async_context(name_server.running())
    port = ports.free_port()
    proxy = await stack.enter_async_context(in_a_container(tmp_path, dns=names.port, api_port=port))
    async with AsyncExitStack() as apis:
        yield Compose(proxy, names, port, apis)


async def _until_asked(compose: Compose, api: Upstream, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not api.requests:
        assert (await compose.proxy.ask("POST", "/orders")).status == 200
        assert time.monotonic() < deadline


async def test_scaled(compose: Compose) -> None:
    """
    An api that appears under the name is asked within a second or so, without a restart; requests are spread.
    """
    first = await compose.start(answer())
    await _until_asked(compose, first, 2)

    more = [await compose.start(answer()) for _ in range(4)]
    for each in more:
        await _until_asked(compose, each, 3)


async def test_gone(compose: Compose) -> None:
    """
    An api that is gone costs no request, whether its name still points there or not.
    """
    compose.names.addresses.append("127.0.0.99")
    alive = await compose.start(answer())

    for count in range(1, 21):
        assert (await compose.proxy.ask("POST", "/order/place")).status == 200
        assert count == len(alive.requests)


async def test_none_yet(compose: Compose) -> None:
    """
    nginx runs before there is any api, answers 502 as a problem, and finds the first one within a second or so.
    """
    got = await compose.proxy.ask("POST", "/orders")
    assert got.status == 502
    got.problem()

    api = await compose.start(answer())
    deadline = time.monotonic() + 3
    while (await compose.proxy.ask("POST", "/orders")).status != 200:
        assert time.monotonic() < deadline
    assert len(api.requests) == 1


async def test_same_rules(compose: Compose) -> None:
    """
    A POST is sent once, with a key to the next api; probes are not found; the target is unchanged.
    """
    behaviour = first_then(hang_up, answer())
    apis = [await compose.start(behaviour), await compose.start(behaviour)]

    assert (await compose.proxy.ask("POST", "/orders?x=%2F")).status == 502
    (only,) = [request for each in apis for request in each.requests]
    assert only.target == "/orders?x=%2F"

    third = first_then(hang_up, answer())
    for each in apis:
        each.behaviour = third
    assert (await compose.proxy.ask("POST", "/orders?x=%2F", ["Idempotency-Key: k"])).status == 200
    assert sum(len(each.requests) for each in apis) == 3

    assert (await compose.proxy.ask("GET", "/metrics")).status == 404
