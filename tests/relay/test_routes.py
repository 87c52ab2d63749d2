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


class Table:
    """The statements on the waiting keys, without a server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turns: dict[Route, int] = {}  # of the first key of each route
        self.changers: list[str] = []
        self.looked_at: list[tuple[int, int]] = []
        self.asked: list[list[Route]] = []
        monkeypatch.setattr(outbox_table, "changers", self._changers)
        monkeypatch.setattr(outbox_table, "new_routes", self._new_routes)
        monkeypatch.setattr(outbox_table, "first_turns", self._first_turns)

    async def _changers(self, _: Any) -> list[str]:
        return self.changers

    async def _new_routes(self, _: Any, above: int, upto: int) -> dict[Route, int]:
        self.looked_at.append((above, upto))
        return {route: turn for route, turn in self.turns.items() if above < turn <= upto}

    async def _first_turns(self, _: Any, turns: dict[Route, int]) -> dict[Route, int | None]:
        self.asked.append(list(turns))
        return {
            route: self.turns[route] if self.turns.get(route, -1) >= turn else None for route, turn in turns.items()
        }


async def test_waiting_routes_are_looked_at_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A page of routes is followed by the routes behind it, and the last ones by the first ones again.
    """
    table = Table(monkeypatch)
    table.turns = {Route("orders", f"{number:04}"): number for number in range(1, PAGE + 3)}
    routes = Routes(RouteHealth(2.0), RelayState())
    all_routes = list(table.turns)

    for _ in range(2):
        await routes.allowance(CONN, PAGE + 2, 7)

    assert table.asked == [all_routes[:PAGE], all_routes[PAGE:] + all_routes[: PAGE - 2]]


async def test_only_new_turns_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What was seen is not looked at again, but for turns that a transaction may have taken and not committed; a route
    without keys is asked for no more.
    """
    table, routes = Table(monkeypatch), Routes(RouteHealth(2.0), RelayState())
    table.turns = {HERE: 5}
    assert routes.any_waiting(9)

    assert (await routes.allowance(CONN, 9, 7)) == ({HERE: 7}, {HERE: 5})
    table.turns, table.changers = {THERE: 12}, ["3/1"]
    assert (await routes.allowance(CONN, 12, 7)) == ({THERE: 7}, {THERE: 12})
    table.turns[HERE] = 10
    assert (await routes.allowance(CONN, 12, 7)).turns == {THERE: 12, HERE: 10}
    table.turns, table.changers = {}, []
    assert (await routes.allowance(CONN, 12, 7)).keys == {}

    assert table.looked_at == [(0, 9), (9, 12), (9, 12), (9, 12)]
    assert not routes.any_waiting(12)
    routes.forget()
    assert routes.any_waiting(12)


async def test_a_route_that_nothing_waits_for_is_opened_by_a_whole_look_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Only if all new turns were looked at, a failed route that no key waits for is open again.
    """
    Table(monkeypatch)
    health, state = RouteHealth(0.0), RelayState()
    routes = Routes(health, state)
    routes.fail({HERE: "nacked"})
    routes.show()

    with monkeypatch.context() as patch:
        patch.setattr("relay.routes.SEE_SECONDS", 0.0)
        await routes.allowance(CONN, 5, 7)
        assert not routes.is_open(HERE)
        assert state.closed_routes == {str(HERE): "nacked"}
    await routes.allowance(CONN, 5, 7)

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
