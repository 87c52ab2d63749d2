"""Jobs on one connection: each runs while it is wanted, from the moment somebody says so."""

import pytest
from psycopg import AsyncConnection

from orders.database.periodic import Job, Periodic
from tests.eventually import eventually


class Question:
    """A job that counts how often it was asked."""

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted
        self.asked = 0

    async def run(self, conn: AsyncConnection) -> None:
        await conn.execute("SELECT 1")
        self.asked += 1


def job(question: Question, every: float) -> Job:
    return Job(run=question.run, every=every, wanted=lambda: question.wanted)


async def test_a_job_runs_while_it_is_wanted(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What nobody wants is not asked, and holds up nobody; from `soon()` on it is, again and again.
    """
    monkeypatch.setattr("orders.database.periodic.IDLE_SECONDS", 600)
    steady, idle = Question(wanted=True), Question(wanted=False)
    async with Periodic("test", database_url, [job(steady, 0.01), job(idle, 0.01)]) as jobs:
        await eventually(lambda: steady.asked > 3)
        assert idle.asked == 0

        steady.wanted = False
        idle.wanted = True
        jobs.soon()
        await eventually(lambda: idle.asked > 3)


async def test_idle_jobs_wait_for_a_word(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With nothing wanted the connection rests, and `soon()` ends the rest at once; so does the end.
    """
    monkeypatch.setattr("orders.database.periodic.IDLE_SECONDS", 600)
    question = Question(wanted=False)
    async with Periodic("test", database_url, [job(question, 600)]) as jobs:
        question.wanted = True
        jobs.soon()
        await eventually(lambda: question.asked == 1)


async def test_a_job_that_nobody_announced_is_found(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without a word it is seen at the next look at what is wanted.
    """
    monkeypatch.setattr("orders.database.periodic.IDLE_SECONDS", 0.01)
    question = Question(wanted=False)
    async with Periodic("test", database_url, [job(question, 600)]):
        question.wanted = True
        await eventually(lambda: question.asked == 1)
