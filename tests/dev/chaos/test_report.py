"""The report: one page that needs nothing else, and recovery times as they were promised."""

from dev.chaos import report
from dev.chaos.act import Planned, Record
from dev.chaos.invariants import InvariantResult
from dev.chaos.run import Asked, SeedResult, Tick


def fault(kind: str, place: str, fired: float, healed: float, recovery: float | None, *, alone: bool = True) -> Record:
    """A fault with its times."""
    planned = Planned(fired, kind, place, healed - fired, 1)
    return Record(
        planned=planned, fired_at=fired, healed_at=healed, recovery_seconds=recovery, alone=alone, detail="<here>"
    )


def seed_result() -> SeedResult:
    """What a seed came to."""
    return SeedResult(
        asked=Asked(seed=7, minutes=1), ok=False, accepted=5, orders=5, events=10, fired=3, kinds=2, seconds=70,
        settled_seconds=1.5, vacuous=["nothing was in flight"], answers={201: 5}, machine="2 cores", at="now",
        results=[InvariantResult("I1", "every order exists", 1, 5, ["0190: lost"])],
        records=[
            fault("P1", "api-1", 1, 1, 0.5), fault("P3", "worker-2", 5, 15, 1.0), fault("P1", "relay-1", 20, 20, None)
        ],
        ticks=[Tick(float(n), n * 10, n * 9) for n in range(30)],
    )  # fmt: skip


def test_recovery_of_a_stopped_worker_counts_from_its_beginning() -> None:
    """
    Of a kill from the kill, of a broker from its return; what never recovered is counted as such.
    """
    apis, relays, workers, stops, returns = report.summarize([seed_result()]).recoveries

    assert (apis.count, apis.p99, apis.never) == (1, 0.5, 0)
    assert (relays.count, relays.p99, relays.never) == (1, None, 1)
    assert workers.count == 0
    assert (stops.count, stops.p99) == (1, 11.0)
    assert (returns.count, returns.p99) == (0, None)


def test_a_brief_says_what_was_found_without_the_faults() -> None:
    """
    Seed, kinds, violations, the slowest recovery; what never recovered is counted.
    """
    brief = report.brief(seed_result())

    assert (brief.seed, brief.kinds, brief.violations, brief.never_recovered) == (7, ["P1", "P3"], {"I1": 1}, 1)
    assert brief.slowest_recovery == "1.0 s, P3 worker-2"


def test_the_page_needs_nothing_else() -> None:
    """
    No script, no link, no picture from elsewhere; what came from outside is escaped.
    """
    page = report.page(report.summarize([seed_result()]))

    assert "<svg" in page
    assert "0190: lost" in page
    assert "&lt;here&gt;" in page
    assert not any(word in page for word in ("<script", "src=", "href=", "url("))
