"""The same seed is the same plan, and another seed another one."""

import pytest

from dev.chaos import schedule
from dev.chaos.act import KINDS
from dev.chaos.run import handler_of
from dev.chaos.stage import PLAIN, TRANSACTIONAL


def test_a_plan_is_replayable() -> None:
    """
    A failing seed can be run again as it was.
    """
    kinds = schedule.kinds_of("*")

    assert schedule.plan(7, 120, kinds) == schedule.plan(7, 120, kinds)
    assert schedule.plan(7, 120, kinds) != schedule.plan(8, 120, kinds)


def test_five_minutes_hold_a_hundred_faults() -> None:
    """
    On average over a dozen seeds, and more than forty kinds in all.
    """
    plans = [schedule.plan(seed, 300, schedule.kinds_of("*")) for seed in range(1, 13)]

    assert sum(map(len, plans)) / len(plans) >= 100
    assert len({each.kind for plan in plans for each in plan}) > 40


def test_a_plan_keeps_to_what_was_asked_for() -> None:
    """
    Kinds by pattern, places of the kind, times within the run.
    """
    plan = schedule.plan(1, 60, schedule.kinds_of("P*,N4"))

    assert {each.kind for each in plan} <= {"N4", *(id_ for id_ in KINDS if id_.startswith("P"))}
    assert all(each.place in KINDS[each.kind].places for each in plan)
    assert all(0 < each.at < 60 for each in plan)


def test_an_unknown_kind_is_refused() -> None:
    """
    With the names that there are.
    """
    with pytest.raises(ValueError, match="P1"):
        schedule.kinds_of("Z*")


def test_both_kinds_of_handlers_run_in_a_dozen_seeds() -> None:
    """
    Effects outside of the database in most of them, and in the transaction of the order's end in some.
    """
    assert {PLAIN, TRANSACTIONAL} == {handler_of(seed) for seed in range(1, 13)}
    assert handler_of(1) == PLAIN
