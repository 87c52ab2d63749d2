"""Draw the plots of docs/performance.md from the runs in `bench/results/`: `python -m bench.draw`."""

from collections.abc import Iterator

import msgspec

from bench import plot
from bench.record import Record
from sandbox.process import ROOT, write_atomically

RESULTS = ROOT / "bench" / "results"
PLOTS = ROOT / "docs" / "plots"

# Of which measurement and comparison, which figure, under which title and unit.
BARS = (
    ("placing", "placing", "per_second", "Orders placed a second through nginx", "orders/s"),
    ("relay", "drain", "messages_per_second", "A backlog drained to a quorum queue, confirmed", "messages/s"),
    ("relay", "publishing", "cpu_us_per_message", "CPU time to publish a message", "µs"),
    ("relay", "commit to confirm", "p50_ms", "From commit to confirm, one event at a time: p50", "ms"),
    ("end_to_end", "highest", "done_per_second", "Orders a second from the client to done", "orders/s"),
)
LINES = (("end_to_end", "sustained", "backlog", "Orders placed and not yet done", "seconds", "orders"),)


def main() -> None:
    """Draw what there are results for."""
    PLOTS.mkdir(exist_ok=True)
    for measurement, comparison, figure, title, unit in BARS:
        for record in _kept(measurement):
            sides: dict[str, list[float]] = {}
            for run in record.runs:
                value = run.figures.get(figure)
                if run.comparison == comparison and isinstance(value, int | float):
                    sides.setdefault(run.side, []).append(value)
            if sides:
                write_atomically(PLOTS / _file(measurement, comparison), plot.bars(title, unit, sides))
    for measurement, comparison, figure, title, x, y in LINES:
        for record in _kept(measurement):
            series = {
                run.side: value
                for run in record.runs
                if run.comparison == comparison and isinstance(value := run.figures.get(figure), list)
            }
            if series:
                write_atomically(PLOTS / _file(measurement, comparison), plot.lines(title, x, y, series))


def _kept(measurement: str) -> Iterator[Record]:
    path = RESULTS / f"{measurement}.json"
    if path.exists():
        yield msgspec.json.decode(path.read_bytes(), type=Record)


def _file(measurement: str, comparison: str) -> str:
    return f"{measurement}-{comparison.replace(' ', '-')}.svg"


if __name__ == "__main__":
    main()
