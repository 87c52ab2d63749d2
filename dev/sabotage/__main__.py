"""`make sabotage`: plant each bug in a copy of the tree, and see that its check catches it. What has run is kept."""

import os
import sys
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from dev.sabotage import check, scratch
from dev.sabotage.plants import PLANTS, Plant
from dev.sandbox.choice import choose
from dev.sandbox.process import ROOT, write_atomically
from dev.sandbox.servers import Servers, servers

RUN = ROOT / ".run" / "sabotage"


class Result(msgspec.Struct, frozen=True):
    """What came of one bug."""

    id: str
    title: str
    caught_by: str
    caught: bool
    seconds: float
    said: str
    plant: str  # a digest of what was planted, so that another plant under the same name is run again


def digest(plant: Plant) -> str:
    """Return what tells this plant from another one of its name."""
    return sha256(msgspec.json.encode(plant)).hexdigest()[:16]


def earlier(file: Path, plant: Plant) -> Result | None:
    """What came of this very bug in an earlier run, if it was caught."""
    try:
        result = msgspec.json.decode(file.read_bytes(), type=Result)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return result if result.caught and result.plant == digest(plant) else None


def try_one(plant: Plant, opened: Servers) -> Result:
    """Plant a bug in a copy of its own, and run its check there."""
    with scratch.copy_of(ROOT) as copy:
        scratch.plant(copy, plant.changes)
        checked = check.run([plant.check], copy, opened)
    return Result(
        plant.id, plant.title, plant.check, checked.failed, checked.seconds, checked.said, plant=digest(plant)
    )


def chosen(ids: Iterable[str]) -> list[Plant]:
    """Return the plants of these ids, or all of them."""
    unknown = sorted(set(ids) - set(PLANTS))
    if unknown:
        raise click.UsageError(f"no such bug: {', '.join(unknown)}; --list shows what there is")
    return [PLANTS[id_] for id_ in ids] or list(PLANTS.values())


@click.command()
@click.argument("ids", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="Print the bugs, and do nothing.")
@click.option("--again", is_flag=True, help="Run those again that have been caught before.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=RUN, help="Where the results go.")
def main(ids: tuple[str, ...], only_list: bool, again: bool, folder: Path) -> None:
    """Plant bugs one at a time, each in a copy of the tree, and see that a test catches each."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    plants = chosen(ids)
    if only_list:
        for plant in plants:
            console.print(f"{plant.id:5} {plant.title}: {plant.check}", highlight=False, markup=False)
        return
    folder.mkdir(parents=True, exist_ok=True)
    kept = {plant.id: None if again else earlier(folder / f"{plant.id}.json", plant) for plant in plants}
    due = [plant for plant in plants if kept[plant.id] is None]
    results = [result for result in kept.values() if result is not None]
    if due:
        with servers(choose(os.environ)) as opened:
            results += run(due, opened, folder, console)
    show(results, console)
    sys.exit(0 if all(result.caught for result in results) else 1)


def run(due: list[Plant], opened: Servers, folder: Path, console: Console) -> list[Result]:
    """See that all checks pass where nothing is planted; then plant one bug after the other, and keep each result."""
    with scratch.copy_of(ROOT) as copy:
        checked = check.run(sorted({plant.check for plant in due}), copy, opened)
    if not checked.passed:
        raise click.ClickException(f"the checks do not even pass where nothing is planted: {checked.said}")
    console.print(f"nothing planted: all checks pass, in {checked.seconds} s", highlight=False)
    results = []
    for plant in due:
        result = try_one(plant, opened)
        write_atomically(folder / f"{plant.id}.json", msgspec.json.format(msgspec.json.encode(result)).decode() + "\n")
        word = "caught" if result.caught else "NOT CAUGHT"
        console.print(f"{plant.id:5} {word} in {result.seconds} s: {result.said}", highlight=False, markup=False)
        results.append(result)
    return results


def show(results: list[Result], console: Console) -> None:
    """Print what was caught by what."""
    table = Table("bug", "", "caught by", "seconds", title=f"{sum(r.caught for r in results)} of {len(results)} caught")
    for each in results:
        table.add_row(each.id, each.title, each.caught_by if each.caught else "nobody", f"{each.seconds:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
