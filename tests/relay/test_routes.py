"""The routes as one claimer uses them."""

from typing import Any, cast

import pytest

from relay import outbox_table
from relay.message import Route
from relay.route_health import RouteHealth
from relay.routes import PAGE, Routes
from relay.state import RelayState

CONN = cast(Any, None)
HERE, THERE = Route("orders", "here"), Route("orders", "there")


async def test_waiting_routes_are_looked_at_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A full page is followed by the routes behind it, and a page that is not full by the first ones again.
    """
    full = [Route("orders", f"{number:04}") for number in range(PAGE)]
    pages = iter([full, [THERE], [HERE]])
    asked: list[Route | None] = []

    async def routes_waiting(_: Any, behind: Route | None, limit: int) -> list[Route]:
        assert limit == PAGE
        asked.append(behind)
        return next(pages)

    monkeypatch.setattr(outbox_table, "routes_waiting", routes_waiting)
    routes = Routes(RouteHealth(2.0), RelayState())

    allowances = [await routes.allowance(CONN, 7) for _ in range(3)]

    assert asked == [None, full[-1], None]
    assert allowances[1:] == [{THERE: 7}, {HERE: 7}]


async def test_a_route_that_nothing_waits_for_is_opened_by_a_whole_look_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Only if one page has all waiting routes, a failed route that is not among them is open again.
    """
    health, state = RouteHealth(0.0), RelayState()
    routes = Routes(health, state)
    pages = iter([[Route("orders", f"{number:04}") for number in range(PAGE)], [], []])

    async def routes_waiting(*_: Any) -> list[Route]:
        return next(pages)

    monkeypatch.setattr(outbox_table, "routes_waiting", routes_waiting)
    routes.fail({HERE: "nacked"})
    routes.show()

    for _ in range(2):
        await routes.allowance(CONN, 7)
        assert not routes.is_open(HERE)
        assert state.closed_routes == {str(HERE): "nacked"}
    await routes.allowance(CONN, 7)

    assert routes.is_open(HERE)
    assert state.closed_routes == {}


def test_a_route_that_passed_is_widened() -> None:
    """
    A closed route is due later; after enough waves that passed it is open, and none is due.
    """
    routes = Routes(RouteHealth(2.0), RelayState())
    routes.fail({HERE: "nacked"})
    assert routes.next_try(0.0) is not None

    for _ in range(3):
        routes.passed({HERE, THERE})

    assert routes.is_open(HERE)
    assert routes.next_try(0.0) is None
