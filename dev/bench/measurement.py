"""What a measurement is handed: the servers, the form it is wanted in, and where its runs go.

def measure(bench: Bench) -> None:
    rates = bench.compare("drain", {"ours": one_run_of_ours, "theirs": one_run_of_theirs}, rounds=3)
    bench.ratio("ours / theirs", "drain", "rows_per_second", "ours", "theirs", "at least 2")
"""

import os
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from rich.console import Console
from rich.table import Table

from dev.bench.record import Figures, Form, Record
from dev.sandbox.choice import choose
from dev.sandbox.servers import Servers, servers


class Bench:
    """One measurement, from its first run to its table."""

    def __init__(self, name: str, form: Form, console: Console, shared: "SharedServers") -> None:
        self.console = console
        self.record = Record.open(name, form)
        self._shared = shared
        self._ratios: list[str] = []

    @property
    def full(self) -> bool:
        """Say whether the long form was asked for (FULL=1)."""
        return self.record.form == "full"

    @property
    def servers(self) -> Servers:
        """The servers, started when somebody first asks, and shared by all measurements of this call."""
        its = self._shared.get()
        kind = self.record.settings["servers"] = self._shared.choice.kind
        if kind != "local":
            self.note("The CPU time of PostgreSQL and RabbitMQ is not counted: their processes are not ours.")
        return its

    def settings(self, **settings: object) -> None:
        """Write down what the figures depend on."""
        self.record.settings |= settings

    def note(self, text: str) -> None:
        """Say something that a reader of the figures has to know."""
        self.console.print(text)
        if text not in self.record.notes:
            self.record.notes.append(text)

    def compare(self, comparison: str, sides: Mapping[str, Callable[[], Figures]], rounds: int) -> None:
        """Run each side in turn: A B C, B C A, C A B, then C B A and on. What an interrupted full run did is kept.

        So none always follows the same one, whose work may go on in the servers when its own run has ended.
        """
        total = rounds * len(sides)
        done = 0
        turns = deque(sides.items())
        for number in range(1, rounds + 1):
            for side, run_once in tuple(turns):
                done += 1
                run = self.record.find(comparison, side, number)
                if run is None:
                    self.console.print(f"[dim]{self.record.name}: {comparison}, {side} ({done} of {total}) ...[/]")
                    load = os.getloadavg()[0]
                    run = self.record.add(comparison, side, number, run_once(), load)
                self.console.print(
                    f"[dim]{self.record.name}: {comparison}, {side} ({done} of {total}):[/] {_said(run.figures)}"
                )
            turns.rotate(-1)
            if number % len(turns) == 0:
                turns.reverse()

    def by_round(self, comparison: str, side: str, figure: str) -> dict[int, float]:
        """Return a figure of each run of a side that has it, by its round."""
        found = {
            run.round: run.figures.get(figure)
            for run in self.record.runs
            if (run.comparison, run.side) == (comparison, side)
        }
        return {number: value for number, value in found.items() if isinstance(value, int | float)}

    def values(self, comparison: str, side: str, figure: str) -> list[float]:
        """Return a figure of each run of a side that has it."""
        return list(self.by_round(comparison, side, figure).values())

    def median(self, comparison: str, side: str, figure: str) -> float:
        return statistics.median(self.values(comparison, side, figure))

    def ratio(self, name: str, comparison: str, figure: str, of: str, to: str, target: str = "") -> float:
        """Keep how many times one side is the other, and print it: the median of the ratios, each of one round.

        The machine may be twice as fast in one minute as in the next, but hardly between two runs of one round.
        """
        above, below = self.by_round(comparison, of, figure), self.by_round(comparison, to, figure)
        both = above.keys() & below.keys()
        ratio = statistics.median(above[number] / below[number] if below[number] else float("inf") for number in both)
        self.record.ratios[name] = round(ratio, 3)
        self._ratios.append(f"[bold]{name}: {ratio:.2f}[/]" + (f" (target: {target})" if target else ""))
        return ratio

    def finish(self) -> None:
        """Print the ratios, then each comparison with medians, minima and maxima; write it all."""
        for line in self._ratios:
            self.console.print(line)
        for comparison in dict.fromkeys(run.comparison for run in self.record.runs):
            self.console.print(self._table(comparison))
        self.record.save()
        self.console.print(f"[dim]{self.record.path}[/]")

    def _table(self, comparison: str) -> Table:
        runs = [run for run in self.record.runs if run.comparison == comparison]
        sides = list(dict.fromkeys(run.side for run in runs))
        names = dict.fromkeys(
            name for run in runs for name, value in run.figures.items() if isinstance(value, int | float)
        )
        table = Table("", *sides, title=f"{self.record.name}: {comparison} (median, min .. max)")
        for name in names:
            cells = []
            for side in sides:
                values = self.values(comparison, side, name)
                cells.append(_spread(values) if values else "")
            table.add_row(name.replace("_", " "), *cells)
        return table


class SharedServers:
    """PostgreSQL and RabbitMQ, started once for all measurements that want them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stack = ExitStack()
        self._its: Servers | None = None
        self.choice = choose(os.environ)

    def __enter__(self) -> "SharedServers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def get(self) -> Servers:
        if self._its is None:
            self._console.print(str(self.choice))
            self._its = self._stack.enter_context(servers(self.choice))
        return self._its


def _scalars(figures: Figures) -> list[tuple[str, float]]:
    return [(name, value) for name, value in figures.items() if isinstance(value, int | float)]


def _said(figures: Figures) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in _scalars(figures))


def _spread(values: list[float]) -> str:
    median = _number(statistics.median(values))
    return median if len(values) == 1 else f"{median}  ({_number(min(values))} .. {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
