"""Requests per second and client."""

from tests.nginx.conftest import StartApi, StartNginx
from tests.nginx.proxy import concurrently
from tests.nginx.upstream import answer


async def test_off(api: StartApi, nginx: StartNginx) -> None:
    """
    Without the setting nobody is limited.
    """
    proxy = await nginx(await api(answer()))

    answers = await concurrently(*(proxy.ask("GET", "/orders") for _ in range(200)))

    assert {200} == {each.status for each in answers}


async def test_on(api: StartApi, nginx: StartNginx) -> None:
    """
    Beyond a second's worth a client gets 429 with Retry-After, as a problem, and no api hears of it.
    """
    only = await api(answer())
    proxy = await nginx(only, rate_limit=5)

    answers = await concurrently(*(proxy.ask("POST", "/orders") for _ in range(50)))

    refused = [each for each in answers if each.status != 200]
    assert {429} == {each.status for each in refused}
    assert {("1",)} == {tuple(each.all("Retry-After")) for each in refused}
    assert refused[0].problem()["title"] == "Too Many Requests"
    # 5 at once and one for each fifth of a second that this took.
    assert 5 <= len(only.requests) < 25
    assert len(refused) + len(only.requests) == 50


async def test_ways_are_limited_alike(api: StartApi, nginx: StartNginx) -> None:
    """
    The limit counts every way together, once for each request.
    """
    only = await api(answer())
    proxy = await nginx(only, rate_limit=1)
    ways = [("POST", "/orders"), ("GET", "/orders"), ("GET", "/orders/1/events")]

    # One is served, a second one is the burst.
    answers = [await proxy.ask(*way) for way in ways * 2]

    assert [each.status for each in answers[:2]] == [200, 200]
    assert 429 in [each.status for each in answers]
    assert len(only.requests) == sum(each.status == 200 for each in answers)


async def test_each_client_has_its_own(api: StartApi, nginx: StartNginx) -> None:
    """
    One client at its limit leaves the others alone: those with keys, and those without.
    """
    proxy = await nginx(await api(answer()), rate_limit=1)
    greedy = ["Authorization: Bearer greedy"]

    answers = await concurrently(*(proxy.ask("GET", "/orders", greedy) for _ in range(20)))
    assert 429 in [each.status for each in answers]

    assert (await proxy.ask("GET", "/orders", ["Authorization: Bearer modest"])).status == 200
    assert (await proxy.ask("GET", "/orders")).status == 200
