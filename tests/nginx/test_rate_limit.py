"""Requests per second and client."""

import os
import subprocess
from pathlib import Path

import pytest

from dev.sandbox.nginx import RULES, render
from dev.sandbox.process import StartError
from tests.nginx.conftest import StartApi, StartNginx
from tests.nginx.proxy import concurrently
from tests.nginx.upstream import answer


@pytest.mark.parametrize("rate_limit", [None, 0])
async def test_off(api: StartApi, nginx: StartNginx, rate_limit: int | None) -> None:
    """
    Without the setting, or with 0, nobody is limited.
    """
    proxy = await nginx(await api(answer()), rate_limit=rate_limit)

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
    greedy = ["Authorization: Bearer orders_0123456789ab_" + "x" * 43]

    answers = await concurrently(*(proxy.ask("GET", "/orders", greedy) for _ in range(20)))
    assert 429 in [each.status for each in answers]

    assert (await proxy.ask("GET", "/orders", ["Authorization: Bearer orders_ba9876543210_" + "x" * 43])).status == 200
    assert (await proxy.ask("GET", "/orders")).status == 200


async def test_a_key_has_one_limit(api: StartApi, nginx: StartNginx) -> None:
    """
    However a client spells the header of its key, its requests count together; what is no key counts by its address.
    """
    for spellings in (
        [word + " orders_0123456789ab_" + "x" * 43 for word in ("Bearer", "bearer", "BEARER", "bEARER", "BeArEr")],
        ["Bearer" + " " * blanks + "orders_0123456789ab_" + "x" * 43 for blanks in range(2, 7)],
        [f"Basic {number}" for number in range(5)],
    ):
        only = await api(answer())
        proxy = await nginx(only, rate_limit=1)
        for _ in range(2):
            await proxy.ask("GET", "/orders", [f"Authorization: {spellings[0]}"])  # one, and its burst

        answers = await concurrently(*(proxy.ask("GET", "/orders", [f"Authorization: {each}"]) for each in spellings))

        assert len([each for each in answers if each.status == 200]) <= 1  # if a second is over


async def test_an_address_with_invented_keys(api: StartApi, nginx: StartNginx) -> None:
    """
    A new key for each request gets ten times the limit of a client, and no more.
    """
    only = await api(answer())
    proxy = await nginx(only, rate_limit=1)

    headers = [[f"Authorization: Bearer orders_{number:012x}_" + "x" * 43] for number in range(60)]
    answers = await concurrently(*(proxy.ask("GET", "/orders", each) for each in headers))

    assert {200, 429} == {each.status for each in answers}
    assert 11 <= len(only.requests) < 40


@pytest.mark.parametrize("wrong", ["-1", "1.5", "5r/s", "none", " 5"])
def test_what_is_no_rate(tmp_path: Path, wrong: str) -> None:
    """
    A limit that is no whole number is refused in one line that names it, on the host and in the container.
    """
    with pytest.raises(StartError, match="ORDERS_RATE_LIMIT is wrong"):
        render(tmp_path, 1, [], tmp_path / "access.log", {"ORDERS_RATE_LIMIT": wrong})
    refused = in_the_entrypoint(wrong)

    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("nginx: ORDERS_RATE_LIMIT is wrong: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "limited", "rate"), [("", "", "1"), ("0", "", "1"), ("00", "", "1"), ("5", "on", "5")]
)
def test_the_container_knows_a_rate_of_zero(given: str, limited: str, rate: str) -> None:
    """
    In the container 0 is no limit too, though nginx knows no such rate.
    """
    assert in_the_entrypoint(given).stdout == f"{limited} {rate}\n"


def in_the_entrypoint(given: str) -> subprocess.CompletedProcess[str]:
    """What the image's entrypoint makes of a limit that compose.yml passes on."""
    # As an `.envsh` is read; the image ignores one that may not be executed.
    script = RULES / "rate-limit.envsh"
    assert os.access(script, os.X_OK)
    return subprocess.run(
        ["sh", "-c", f'. "{script}"; echo "$ORDERS_RATE_LIMITED $ORDERS_RATE_LIMIT"'],
        env={"ORDERS_RATE_LIMIT": given, "ORDERS_RATE_LIMITED": "on"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
