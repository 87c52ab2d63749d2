"""What nginx sends a second time, and what it never does."""

from contextlib import AsyncExitStack

import pytest

from tests.nginx.conftest import StartApi, StartNginx
from tests.nginx.upstream import Behaviour, answer, first_then, hang, hang_up, refusing

KEY = "Idempotency-Key: 3f1c"
ORDER = "/orders/01980a4e-7c5d-7a3b-9f00-000000000001"

NEVER_TWICE = [
    pytest.param("POST", "/orders", [], id="no key"),
    pytest.param("POST", f"{ORDER}/cancel", [], id="cancel without a key"),
    pytest.param("POST", "/order/place", [], id="the tutorial's route"),
    pytest.param("POST", "/orders/batch", [KEY], id="a batch, whose keys stand in its lines"),
    pytest.param("POST", "/order/place", [KEY], id="the tutorial's route with a key"),
    pytest.param("POST", "/order/place?/orders", [KEY], id="the tutorial's route, a query that looks like another"),
    pytest.param("POST", "/order/../orders", [KEY], id="a path that needs normalising"),
    pytest.param("POST", "/orders/../order/place", [KEY], id="the tutorial's route, disguised"),
    pytest.param("POST", "/%6frders", [KEY], id="an encoded path"),
    pytest.param("POST", "/orders/%2e%2e/cancel/../order/place", [KEY], id="the tutorial's route, disguised as cancel"),
    pytest.param("POST", "/orders", ["Idempotency-Key:"], id="an empty key"),
    pytest.param("POST", "/orders", ["Idempotency-Key: two words"], id="a key with a space"),
    pytest.param("POST", "/orders", ["Idempotency-Key: " + "k" * 256], id="a key that is too long"),
    pytest.param("PATCH", "/orders", [KEY], id="another method"),
]

WITH_A_KEY = [
    pytest.param("/orders", KEY, id="placing"),
    pytest.param("/orders?dry=1", KEY, id="placing, with a query"),
    pytest.param(f"{ORDER}/cancel", KEY, id="cancelling"),
    pytest.param("/orders", 'Idempotency-Key: "3f1c"', id="a quoted key"),
    pytest.param("/orders", "Idempotency-Key: " + "k" * 255, id="the longest key"),
]


@pytest.mark.parametrize(("method", "target", "headers"), NEVER_TWICE)
async def test_hung_up_once(api: StartApi, nginx: StartNginx, method: str, target: str, headers: list[str]) -> None:
    """
    A request that must not be repeated is sent once when the api hangs up on it, and answered with 502.
    """
    apis = [await api(hang_up) for _ in range(3)]
    proxy = await nginx(*apis)

    got = await proxy.ask(method, target, headers, b"{}")

    assert got.status == 502
    assert got.all("Retry-After") == []
    assert "Idempotency-Key" in got.problem()["detail"]
    assert sum(len(each.requests) for each in apis) == 1


@pytest.mark.parametrize(("method", "target", "headers"), NEVER_TWICE[:6])
async def test_hung_once(api: StartApi, nginx: StartNginx, method: str, target: str, headers: list[str]) -> None:
    """
    A request that must not be repeated is sent once when the api stays silent, and answered with 504.
    """
    apis = [await api(hang) for _ in range(3)]
    proxy = await nginx(*apis, times=20)

    got = await proxy.ask(method, target, headers, b"{}")

    assert got.status == 504
    assert got.all("Retry-After") == []
    assert "Idempotency-Key" in got.problem()["detail"]
    assert sum(len(each.requests) for each in apis) == 1


async def test_kept_connection_once(api: StartApi, nginx: StartNginx) -> None:
    """
    A POST without a key is sent once also when the kept connection that it took is closed on it.
    """
    only = await api(first_then(answer(), hang_up))
    # One connection is kept for each worker; whichever takes the second request, it is sent once.
    proxy = await nginx(only)

    assert (await proxy.ask("POST", "/orders")).status == 200
    assert (await proxy.ask("POST", "/orders")).status == 502
    assert len(only.requests) == 2


@pytest.mark.parametrize("target", ["/orders", "/order/place", f"{ORDER}/cancel"])
async def test_refused_goes_on(api: StartApi, nginx: StartNginx, nobody: int, target: str) -> None:
    """
    A POST without a key goes to the next api when the connection was refused: nothing was sent.
    """
    alive = await api(answer(201, b'{"order_id":"1"}'))
    proxy = await nginx(nobody, alive)

    for count in range(1, 11):
        assert (await proxy.ask("POST", target, [], b"{}")).status == 201
        assert count == len(alive.requests)


async def test_every_api_may_refuse(stack: AsyncExitStack, api: StartApi, nginx: StartNginx) -> None:
    """
    One api of six is enough for a POST without a key.
    """
    alive = await api(answer())
    proxy = await nginx(*(stack.enter_context(refusing()) for _ in range(5)), alive)

    for _ in range(6):
        assert (await proxy.ask("POST", "/order/place")).status == 200
    assert len(alive.requests) == 6


@pytest.mark.parametrize(("target", "key"), WITH_A_KEY)
@pytest.mark.parametrize("failure", [hang_up, hang])
async def test_key_is_repeated(api: StartApi, nginx: StartNginx, target: str, key: str, failure: Behaviour) -> None:
    """
    A POST with a key goes to the next api, unchanged, when one hangs up or stays silent.
    """
    # Whichever of the two is asked first fails: they share their behaviour.
    behaviour = first_then(failure, answer(201))
    apis = [await api(behaviour), await api(behaviour)]
    proxy = await nginx(*apis, times=20)

    got = await proxy.ask("POST", target, [key], b'{"currency":"GBP"}')

    assert got.status == 201
    assert [len(each.requests) for each in apis] == [1, 1]
    first, second = apis[0].requests[0], apis[1].requests[0]
    assert (first.target, first.body) == (second.target, second.body) == (target, b'{"currency":"GBP"}')
    assert first.headers == second.headers


async def test_get_is_repeated(api: StartApi, nginx: StartNginx) -> None:
    """
    A GET goes to the next api when one hangs up.
    """
    behaviour = first_then(hang_up, answer())
    proxy = await nginx(await api(behaviour), await api(behaviour))

    assert (await proxy.ask("GET", ORDER)).status == 200


async def test_three_tries(api: StartApi, nginx: StartNginx) -> None:
    """
    A request that makes every api hang up meets three of them, not all.
    """
    apis = [await api(hang_up) for _ in range(5)]
    proxy = await nginx(*apis)

    assert (await proxy.ask("POST", "/orders", [KEY])).status == 502
    assert sum(len(each.requests) for each in apis) == 3


async def test_two_silences(api: StartApi, nginx: StartNginx) -> None:
    """
    A request that may be repeated waits for two silent apis, then is answered with 504.
    """
    apis = [await api(hang) for _ in range(5)]
    proxy = await nginx(*apis, times=20)

    assert (await proxy.ask("POST", "/orders", [KEY])).status == 504
    assert sum(len(each.requests) for each in apis) == 2


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
async def test_an_answer_is_final(api: StartApi, nginx: StartNginx, status: int) -> None:
    """
    An api's own error is the answer, also to a request that may be repeated: overload is not passed round.
    """
    apis = [await api(answer(status)) for _ in range(2)]
    proxy = await nginx(*apis)

    assert status == (await proxy.ask("POST", "/orders", [KEY])).status
    assert status == (await proxy.ask("GET", ORDER)).status
    assert sum(len(each.requests) for each in apis) == 2
