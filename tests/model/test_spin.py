"""The protocols as models, searched exhaustively by spin; docs/model/README.md says what they model."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from dev.sandbox import packages
from dev.sandbox.process import ROOT

pytestmark = pytest.mark.long

FOLDER = ROOT / "docs" / "model"

# Fewer states than this, and the model has lost its teeth.
MODELS = {"outbox": 1_000_000, "mark": 100_000, "work": 20_000}

# Each rule, and what happens without it.
RULES = {
    ("outbox", "NO_WAVES"): "REORDERED",
    ("outbox", "NO_SHARD_LOCK"): "REORDERED",
    ("outbox", "OLD_SNAPSHOT"): "REORDERED",
    ("outbox", "PARK_BEHIND_PENDING"): "REORDERED",
    ("outbox", "MARK_BEFORE_CONFIRM"): "FALSE SENT",
    ("outbox", "NO_MANDATORY"): "FALSE SENT",
    ("mark", "TIMED_MARK"): "LOST",
    ("mark", "HOLDERS_FIRST"): "LOST",
    ("mark", "LOWEST_FIRST"): "LOST",
    ("mark", "MEMORY_MARK"): "LOST",
    ("work", "ACK_BEFORE_COMMIT"): "LOST",
    ("work", "WORK_BEFORE_CLAIM"): "CHARGED",
    ("work", "UNLOCKED_CLAIM"): "DOUBLED",
    ("work", "NO_LIVENESS"): "DOUBLED",
    ("work", "NO_FENCE"): "ZOMBIE",
}


class Search(msgspec.Struct, frozen=True):
    """What a search came to."""

    states: int
    errors: int
    report: str
    trail: str  # what happens, line by line, on the way to the first error


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """spin, and the compiler that it hands its verifier to."""
    packages.ensure(["spin", "gcc"])


def search(model: str, folder: Path, *switches: str, breadth_first: bool = False) -> Search:
    """Search all states of a model; breadth first finds the shortest way to an error, and takes more memory."""
    source = FOLDER / f"{model}.pml"
    defined = [f"-D{switch}" for switch in switches]
    # To compile with care takes longer than the search of a small model.
    compiling = ["gcc", "-w", "-O0" if breadth_first or model != "outbox" else "-O2", "-DSAFETY", "-o", "pan", "pan.c"]
    if breadth_first:
        compiling.insert(1, "-DBFS")
    run(["spin", "-a", *defined, str(source)], folder)
    run(compiling, folder)
    report = run(["./pan", "-m200000", "-n"], folder)
    trail = ""
    if (folder / f"{source.name}.trail").exists():
        shown = run(["spin", "-k", f"{source.name}.trail", *defined, str(source)], folder)
        trail = shown.partition("\nspin: ")[0]
    words = report.split()
    assert "Search not completed" not in report or "errors: 0" not in report, report
    return Search(
        states=int(float(words[words.index("states,") - 1])),
        errors=int(words[words.index("errors:") + 1]),
        report=report,
        trail=trail,
    )


def run(command: list[str], folder: Path) -> str:
    """Run a program in a folder; what it wrote."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize("model", MODELS)
def test_no_state_breaks_the_promise(model: str, tmp_path: Path) -> None:
    """
    In no interleaving of two relays, two workers, their crashes and the broker's moods is an event lost, reordered,
    falsely called sent, or an order worked under another's attempt.
    """
    found = search(model, tmp_path)
    print(found.report)

    assert (found.errors, found.trail) == (0, "")
    assert found.states > MODELS[model]
    assert "max search depth too small" not in found.report


@pytest.mark.parametrize(("model", "rule"), RULES, ids=[f"{model}-{rule}" for model, rule in RULES])
def test_no_rule_is_idle(model: str, rule: str, tmp_path: Path) -> None:
    """
    Without any one of the rules the promise is broken, and the trail says how.
    """
    found = search(model, tmp_path, rule, breadth_first=True)
    print(found.trail)

    assert found.errors == 1
    assert RULES[model, rule] in found.trail.splitlines()[-1]


def test_every_switch_is_tried() -> None:
    """
    A rule that a model can do without is a rule that is shown to be needed.
    """
    switches = {
        (path.stem, line.split()[1])
        for path in FOLDER.glob("*.pml")
        for line in path.read_text().splitlines()
        if line.startswith(("#ifdef", "#ifndef"))
    }

    assert set(RULES) == switches
