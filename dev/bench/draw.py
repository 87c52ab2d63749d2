"""Draw the plots of docs/performance.md from the runs in `dev/bench/results/`: `python -m dev.bench.draw`.

What there is no result for is not drawn, and its plot of before stays.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from dev.bench import plot
from dev.bench.record import Record, Run
from dev.sandbox.process import ROOT, write_atomically

RESULTS = ROOT / "dev" / "bench" / "results"
PLOTS = ROOT / "docs" / "plots"


class Bars(msgspec.Struct, frozen=True):
    """One figure of a comparison, side by side."""

    results: str
    comparison: str
    figure: str
    title: str
    unit: str

    def draw(self, runs: list[Run]) -> str | None:
        sides: dict[str, list[float]] = {}
        for run in runs:
            _take(sides, run.side, run, self.figure)
        return plot.bars(self.title, self.unit, sides) if sides else None


class Figures(msgspec.Struct, frozen=True):
    """Several figures of the only side there is, by what to call them."""

    results: str
    comparison: str
    figures: Mapping[str, str]
    title: str
    unit: str

    def draw(self, runs: list[Run]) -> str | None:
        named: dict[str, list[float]] = {}
        for figure, name in self.figures.items():
            for run in runs:
                _take(named, name, run, figure)
        return plot.bars(self.title, self.unit, named) if named else None


class Lines(msgspec.Struct, frozen=True):
    """A series of each side, of its first round."""

    results: str
    comparison: str
    figure: str
    title: str
    x: str
    y: str

    def draw(self, runs: list[Run]) -> str | None:
        series: dict[str, list[tuple[float, float]]] = {}
        for run in runs:
            value = run.figures.get(self.figure)
            if isinstance(value, list) and value:
                series.setdefault(run.side, value)
        return plot.lines(self.title, self.x, self.y, series) if series else None


STREAMS = {
    "stream_p50_ms": "a stream, p50",
    "stream_p99_ms": "a stream, p99",
    "stream_max_ms": "a stream, at most",
    "wait_p50_ms": "Prefer: wait, p50",
    "wait_max_ms": "Prefer: wait, at most",
}

# By the names of their files.
PICTURES: Mapping[str, Bars | Figures | Lines] = {
    "placing-placing": Bars("placing", "placing", "per_second", "Orders placed a second through nginx", "orders/s"),
    "placing-cpu": Bars("placing", "placing", "cpu_us", "CPU time of an order in all programs", "µs"),
    "placing-ramp": Lines(
        "placing", "ramp", "answered_by_asked", "100 requests a second more each second", "asked/s", "answered/s"
    ),
    "placing-sent-rows": Bars(
        "placing", "sent rows", "per_second", "Orders placed, by sent rows there are", "orders/s"
    ),
    "placing-held-horizon": Bars(
        "placing", "held horizon", "per_second", "Orders placed while the xmin horizon is held", "orders/s"
    ),
    "relay-drain": Bars(
        "relay", "drain", "messages_per_second", "A backlog drained to a quorum queue, confirmed", "messages/s"
    ),
    "relay-publishing": Bars("relay", "publishing", "cpu_us_per_message", "CPU time to publish a message", "µs"),
    "relay-backlog": Bars("relay", "backlog", "messages_per_second", "Backlogs drained, by their rows", "messages/s"),
    "relay-commit-to-confirm": Bars(
        "relay", "commit to confirm", "p50_ms", "From commit to confirm, one event at a time: p50", "ms"
    ),
    "end_to_end-highest": Bars(
        "end_to_end", "highest", "done_per_second", "Orders a second from the client to done", "orders/s"
    ),
    "end_to_end-highest-backlog": Lines(
        "end_to_end", "highest", "backlog", "Placed and not yet done, as fast as it goes", "seconds", "orders"
    ),
    "end_to_end-sustained": Lines(
        "end_to_end",
        "sustained",
        "backlog",
        "Placed and not yet done, at the highest steady rates",
        "seconds",
        "orders",
    ),
    "limits-placing": Bars(
        "limits", "placing", "orders_per_second", "Our statement by pgbench: orders placed a second", "orders/s"
    ),
    "limits-consuming": Bars(
        "limits", "consuming", "messages_per_second", "A full quorum queue emptied, each message acked", "messages/s"
    ),
    "streams": Figures("streams", "a thousand streams", STREAMS, "From a commit to 1,000 live streams", "ms"),
}


def main(results: Path = RESULTS, plots: Path = PLOTS) -> list[str]:
    """Draw what there are results for, and return the names of it."""
    plots.mkdir(exist_ok=True)
    drawn = []
    for name, picture in PICTURES.items():
        svg = picture.draw(_kept(results, picture.results, picture.comparison))
        if svg is not None:
            write_atomically(plots / f"{name}.svg", svg)
            drawn.append(name)
    return drawn


def _kept(results: Path, measurement: str, comparison: str) -> list[Run]:
    path = results / f"{measurement}.json"
    if not path.exists():
        return []
    record = msgspec.json.decode(path.read_bytes(), type=Record)
    return [run for run in record.runs if run.comparison == comparison]


def _take(into: dict[str, list[float]], name: str, run: Run, figure: str) -> None:
    value = run.figures.get(figure)
    if isinstance(value, int | float):
        into.setdefault(name, []).append(value)


if __name__ == "__main__":
    main()
