"""How runs are put in turn and compared, whatever the machine does meanwhile."""

from pathlib import Path

import pytest
from rich.console import Console

from dev.bench import record
from dev.bench.measurement import Bench, SharedServers
from dev.bench.record import Figures


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    console = Console(quiet=True)
    return Bench("probe", "short", console, SharedServers(console))


def test_each_side_follows_each_other(bench: Bench) -> None:
    """
    The sides take turns, each beginning as often, and each following each other.
    """
    ran: list[str] = []

    def run(side: str) -> Figures:
        ran.append(side)
        return {"rate": 1.0}

    bench.compare("rates", {side: lambda side=side: run(side) for side in "abc"}, 6)  # type: ignore[misc]

    assert "".join(ran) == "abcbcacabcbabacacb"


def test_a_ratio_is_one_of_a_round(bench: Bench) -> None:
    """
    A machine that is three times as fast in some rounds as in others does not change a ratio.
    """
    speeds = iter([1, 1, 3, 3, 1, 1])
    rates = {"ours": 60.0, "theirs": 100.0}

    bench.compare("rates", {side: lambda rate=rate: {"rate": rate * next(speeds)} for side, rate in rates.items()}, 3)  # type: ignore[misc]

    assert bench.ratio("ours / theirs", "rates", "rate", "ours", "theirs") == pytest.approx(0.6)
