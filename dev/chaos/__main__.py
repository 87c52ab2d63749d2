"""`make chaos`: run seeds, each to its own JSON as it ends, and report them together. What has run is not run again."""

import logging
import shutil
import sys
from pathlib import Path

import click
import msgspec
import uvloop
from rich.console import Console

from dev.chaos import report, schedule
from dev.chaos.act import KINDS, Planned
from dev.chaos.run import Asked, SeedResult, run_seed
from dev.sandbox.process import ROOT, write_atomically

RUN = ROOT / ".run" / "chaos"


def seeds_of(text: str) -> list[int]:
    """Read `7`, `1,2,5` or `1-12`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    return seeds


@click.command()
@click.option("--seed", "seeds", default="1", show_default=True, help="One, several, or a range: 7, 1,5 or 1-12.")
@click.option("--minutes", default=5.0, show_default=True, help="How long faults are injected, for each seed.")
@click.option("--faults", default="*", show_default=True, help="Which kinds: P*,N4 …; `list` prints them.")
@click.option("--rate", default=75.0, show_default=True, help="Orders a second.")
@click.option("--one-by-one", is_flag=True, help="Each fault when the one before has passed: clean recovery times.")
@click.option("--again", is_flag=True, help="Run seeds again that have run with the same options.")
@click.option("--plan", "only_plan", is_flag=True, help="Print the plan, and do nothing.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=RUN, help="Where the files go.")
def main(
    seeds: str, minutes: float, faults: str, rate: float, one_by_one: bool, again: bool, only_plan: bool, folder: Path
) -> None:
    """Break the whole system by the schedule of a seed, and check that nothing is lost, doubled or reordered.

    Starts its own servers and processes, and ends them. Exit code 0: every invariant holds, and the run could have
    told if one did not; 1: an invariant is broken, or the run proves nothing. docs/reliability.md says what the
    faults and invariants are, .run/chaos/report.html shows what happened, .run/chaos/seed-N/ keeps every log.

    \b
    make chaos ARGS="--seed 1 --minutes 2 --rate 40"  the short run, as in CI
    make chaos ARGS="--seed 1-12"                     a dozen long ones; cut off, it goes on where it was
    make chaos ARGS="--seed 7 --plan"                 what a seed would do
    make chaos ARGS="--faults list"                   what there is
    make chaos ARGS="--faults P*,N4 --one-by-one"     clean recovery times of some kinds
    """
    console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 120)
    if faults == "list":
        for kind in KINDS.values():
            console.print(f"{kind.id:4} {kind.title}: {', '.join(kind.places)}", highlight=False, markup=False)
        return
    try:
        kinds = schedule.kinds_of(faults)
        numbers = seeds_of(seeds)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # the recorder's broker is away now and then
    folder.mkdir(parents=True, exist_ok=True)
    results: list[SeedResult] = []
    for seed in numbers:
        asked = Asked(seed=seed, minutes=minutes, faults=faults, rate=rate, one_by_one=one_by_one)
        planned = schedule.plan(seed, minutes * 60, kinds)
        if only_plan:
            for each in planned:
                console.print(f"{seed} {each.at:7.2f} s {each.kind:4} {each.place} {each.seconds:g} s", highlight=False)
            continue
        file = folder / f"seed-{seed}.json"
        result = None if again else earlier(file, asked)
        if result is None:
            console.rule(f"seed {seed}: {len(planned)} faults in {minutes:g} minutes")
            result = run_anew(asked, planned, folder / f"seed-{seed}", console)
            write_atomically(file, msgspec.json.encode(result).decode())
        results.append(result)
        report.write(report.summarize(results), folder)
    if only_plan:
        return
    summary = report.summarize(results)
    report.show(summary, console)
    console.print(f"{folder}/report.html and summary.json", highlight=False, markup=False)
    sys.exit(0 if summary.ok else 1)


def run_anew(asked: Asked, planned: list[Planned], folder: Path, console: Console) -> SeedResult:
    """Run a seed in a folder of its own, which stays there to be looked at."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return uvloop.run(run_seed(asked, planned, folder, lambda text: console.print(text, highlight=False, markup=False)))


def earlier(file: Path, asked: Asked) -> SeedResult | None:
    """What this seed came to in an earlier run with the same options, if it was run."""
    try:
        result = msgspec.json.decode(file.read_bytes(), type=SeedResult)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return result if result.asked == asked else None


if __name__ == "__main__":
    main()
