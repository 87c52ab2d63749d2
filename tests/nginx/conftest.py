"""Fixtures: apis that behave as a test wants, and an nginx in front of them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.nginx import proxy, upstream


class StartNginx(Protocol):
    def __call__(
        self,
        *apis: upstream.Upstream | int,
        times: int = 1,
        rate_limit: int | None = None,
        extra: str = "",
    ) -> Awaitable[proxy.Proxy]: ...


StartApi = Callable[[upstream.Behaviour], Awaitable[upstream.Upstream]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Ends what the test started, the last first."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def api(stack: AsyncExitStack) -> StartApi:
    """Start an api with this behaviour."""

    async def start(behaviour: upstream.Behaviour) -> upstream.Upstream:
        return await stack.enter_async_context(upstream.running(behaviour))

    return start


@pytest.fixture
def nobody() -> Iterator[int]:
    """The port of an api that refuses connections."""
    with upstream.refusing() as port:
        yield port


@pytest.fixture
def nginx(stack: AsyncExitStack, tmp_path: Path) -> StartNginx:
    """Start nginx in front of these apis."""

    async def start(
        *apis: upstream.Upstream | int, times: int = 1, rate_limit: int | None = None, extra: str = ""
    ) -> proxy.Proxy:
        ports = [each if isinstance(each, int) else each.port for each in apis]
        running = proxy.on_the_host(tmp_path, ports, times=times, rate_limit=rate_limit, extra=extra)
        return await stack.enter_async_context(running)

    return start
